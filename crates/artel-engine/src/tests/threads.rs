//! The engine on its thread.

use std::time::Duration;

use super::*;

fn start(blocks: usize, config: EngineConfig) -> EngineHandle {
    engine_of_device(blocks, config).spawn().unwrap()
}

fn wait(mut stream: EventStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_recv() {
        answer.add(event);
    }
    answer
}

#[test]
fn a_thousand_requests_from_many_threads_lose_nothing() {
    let config = EngineConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
        max_waiting: 1000,
        ..EngineConfig::default()
    };
    let engine = start(40, config);
    let ask = |thread: usize| {
        let engine = engine.clone();
        std::thread::spawn(move || {
            let requests = (0..125).map(|index| {
                let number = thread * 125 + index;
                let prompt = prompt(number as u32 % 7, 1 + number * 7 % 60);
                let request = request(prompt.clone(), 1 + number % 30);
                (number, engine.submit(request).unwrap(), prompt)
            });
            let mut cancelled = 0;
            for (number, mut stream, prompt) in requests.collect::<Vec<_>>() {
                match number % 5 {
                    0 => drop(stream),
                    1 => {
                        engine.cancel(stream.id());
                        let answer = wait(stream);
                        cancelled += u32::from(*answer.reason() == FinishReason::Cancelled);
                    }
                    2 => {
                        let first = stream.blocking_recv();
                        assert!(matches!(first, Some(Event::Token(_))));
                    }
                    _ => assert_eq!(wait(stream).ids, answer(&prompt, 1 + number % 30)),
                }
            }
            cancelled
        })
    };
    let threads: Vec<_> = (0..8).map(ask).collect();
    let cancelled: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    engine.shutdown(Duration::from_secs(60));
    let metrics = engine.metrics();
    assert_eq!((metrics.kv_blocks_used, metrics.running, metrics.waiting), (0, 0, 0));
    assert_eq!(metrics.finished.total(), 1000);
    assert!(metrics.finished.cancelled >= u64::from(cancelled) && metrics.finished.failed == 0);
}

#[test]
fn a_shutdown_finishes_what_it_can() {
    let engine = start(300, EngineConfig::default());
    let streams = [1, 2].map(|seed| engine.submit(request(prompt(seed, 8), 50)).unwrap());
    assert!(engine.is_alive());
    engine.shutdown(Duration::MAX);
    assert!(!engine.is_alive());
    for (seed, stream) in (1..).zip(streams) {
        assert_eq!(wait(stream).ids, answer(&prompt(seed, 8), 50));
    }
    let refused = engine.submit(request(vec![5], 1)).unwrap_err();
    assert_eq!(refused, SubmitError::Stopped);
    engine.shutdown(Duration::ZERO);
}

#[test]
fn a_shutdown_without_grace_ends_everything() {
    let engine = start(300, EngineConfig { max_num_seqs: 1, ..EngineConfig::default() });
    let streams = [1, 2].map(|seed| engine.submit(request(prompt(seed, 8), 4000)).unwrap());
    engine.shutdown(Duration::ZERO);
    for stream in streams {
        assert_eq!(wait(stream).reason(), &FinishReason::ShutDown);
    }
    assert_eq!(engine.metrics().finished.shut_down, 2);
    assert_eq!(engine.metrics().kv_blocks_used, 0);
}

#[test]
fn answers_arrive_when_nobody_holds_the_handle() {
    let engine = start(100, EngineConfig::default());
    let stream = engine.submit(request(prompt(1, 8), 50)).unwrap();
    drop(engine);
    assert_eq!(wait(stream).ids, answer(&prompt(1, 8), 50));
}

#[test]
fn a_switch_ends_a_request_of_an_engine_that_sleeps_or_works() {
    let engine = start(300, EngineConfig::default());
    let switch = Cancellation::default();
    let cancellation = switch.clone();
    let long = Request { cancellation, ..request(prompt(1, 8), 4000) };
    let mut stream = engine.submit(long).unwrap();
    assert!(matches!(stream.blocking_recv(), Some(Event::Token(_))));
    switch.cancel();
    assert_eq!(wait(stream).reason(), &FinishReason::Cancelled);
    let again = Request { cancellation: switch, ..request(prompt(1, 8), 10) };
    assert_eq!(wait(engine.submit(again).unwrap()).reason(), &FinishReason::Cancelled);
}

#[test]
fn handles_and_streams_go_from_thread_to_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<EngineHandle>();
    shared::<Metrics>();
    fn sent<T: Send>() {}
    sent::<EventStream>();
    sent::<Request>();
    sent::<Engine>();
}
