//! An answer does not depend on what else is answered at the same time.

use std::sync::Arc;

use artel_engine::*;
use artel_model::Format;

use crate::{PROMPTS, Subject, read};

#[test]
fn an_answer_has_the_same_bits_alone_and_among_others() {
    for format in Format::ALL {
        let subject = Subject::new(format);
        let engine = || subject.engine(CpuRunner::new(Arc::new(subject.model())));
        let together = subject.answers(&mut engine());
        for (prompt, expected) in PROMPTS.iter().zip(&together) {
            // Beside nobody, with nothing cached: in other chunks and other batches.
            let mut engine = engine();
            let stream = engine.submit(subject.request(prompt)).unwrap();
            while engine.has_work() {
                engine.step();
            }
            assert!(read(stream) == *expected, "{format}: {prompt:?} has another answer alone");
        }
    }
}
