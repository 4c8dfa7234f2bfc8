//! The engine: `step` = schedule, run, postprocess.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use artel_model::Tokenizer;

use crate::event::FinishReason;
use crate::handle::{EngineHandle, EventStream, Intake};
use crate::metrics::{Metrics, StepMetrics, StepTimes};
use crate::runner::{Runner, SequenceOutput, SequenceStep};
use crate::scheduler::{Scheduled, Scheduler};
use crate::sequence::{Key, Sequence};
use crate::{EngineConfig, Request, RequestId, Result, SubmitError};

/// Runs requests on a model: new ones join the batch as others leave it.
///
/// [`spawn`](Self::spawn) gives it a thread of its own; whoever wants to decide about every step
/// keeps it and calls [`step`](Self::step).
pub struct Engine {
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    intake: Arc<Intake>,
}

impl Engine {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`EngineError::Invalid`](crate::EngineError::Invalid) for sizes that make no sense, and what
    /// the runner fails with when there is not enough memory.
    pub fn new(
        mut runner: Box<dyn Runner>,
        tokenizer: Tokenizer,
        config: EngineConfig,
    ) -> Result<Self> {
        let info = runner.info();
        let (config, blocks) = config.resolve(&info)?;
        runner.allocate(blocks)?;
        let intake = Arc::new(Intake::new(config, info.vocabulary, tokenizer));
        let mut engine = Self { runner, scheduler: Scheduler::new(config, blocks), intake };
        engine.publish();
        Ok(engine)
    }

    /// The sizes in use; `max_model_len` is the real one.
    pub fn config(&self) -> &EngineConfig {
        self.intake.config()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`SubmitError`] for a request that cannot be served or a full queue.
    pub fn submit(&mut self, request: Request) -> std::result::Result<EventStream, SubmitError> {
        let (sequence, stream) = self.intake.accept(request)?;
        self.enqueue(sequence);
        Ok(stream)
    }

    /// What the engine does and has done.
    pub fn metrics(&self) -> Metrics {
        self.intake.metrics()
    }

    /// Whether any request waits or runs.
    pub fn has_work(&self) -> bool {
        !(self.scheduler.waiting.is_empty() && self.scheduler.running.is_empty())
    }

    /// Gives the engine a thread, which ends when nobody holds the handle any more and everything
    /// is answered, or by [`EngineHandle::shutdown`].
    ///
    /// # Errors
    /// [`EngineError::Thread`](crate::EngineError::Thread) when there is no thread to have.
    pub fn spawn(self) -> Result<EngineHandle> {
        EngineHandle::start(self)
    }

    /// Computes one step. What happens to requests is told to their streams; a step that fails ends
    /// those that took part in it.
    pub fn step(&mut self) {
        let started = Instant::now();
        self.drop_cancelled();
        let schedule = self.schedule();
        let scheduled = Instant::now();
        let outputs = self.run(&schedule);
        let ran = Instant::now();
        self.postprocess(&schedule, outputs);
        let times = StepTimes {
            schedule: scheduled - started,
            run: ran - scheduled,
            postprocess: ran.elapsed(),
        };
        self.measure(&schedule, times);
    }

    pub(crate) fn intake(&self) -> &Arc<Intake> {
        &self.intake
    }

    pub(crate) fn enqueue(&mut self, sequence: Box<Sequence>) {
        self.scheduler.waiting.insert(sequence.key, sequence);
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        for key in self.scheduler.select(|sequence| sequence.key.id == id) {
            self.finish(key, FinishReason::Cancelled);
        }
    }

    /// Ends every request.
    pub(crate) fn finish_all(&mut self, reason: &FinishReason) {
        for key in self.scheduler.select(|_| true) {
            self.finish(key, reason.clone());
        }
        self.publish();
    }

    /// Panics when a block is lost or not accounted for.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        self.scheduler.check_integrity();
    }

    fn drop_cancelled(&mut self) {
        for key in self.scheduler.select(Sequence::is_cancelled) {
            self.finish(key, FinishReason::Cancelled);
        }
    }

    /// The tokens of the step. A request whose mask fails ends here.
    fn schedule(&mut self) -> Vec<Scheduled> {
        let mut schedule = self.scheduler.schedule();
        schedule.retain(|&Scheduled { key, tokens }| {
            let sequence = self.scheduler.running.get_mut(&key);
            let updated = sequence.map_or(Ok(()), |sequence| sequence.update_mask(tokens));
            match updated {
                Ok(()) => true,
                Err(why) => {
                    self.finish(key, FinishReason::Failed(why));
                    false
                }
            }
        });
        schedule
    }

    fn run(&mut self, schedule: &[Scheduled]) -> Result<Vec<SequenceOutput>> {
        let batch: Vec<SequenceStep<'_>> = schedule
            .iter()
            .map(|Scheduled { key, tokens }| self.scheduler.running[key].step(*tokens))
            .collect();
        if batch.is_empty() { Ok(Vec::new()) } else { self.runner.run(&batch) }
    }

    /// Takes in the chosen tokens; lets go of the requests that end.
    fn postprocess(&mut self, schedule: &[Scheduled], outputs: Result<Vec<SequenceOutput>>) {
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(why) => {
                tracing::error!("a step failed: {why}");
                let reason = FinishReason::Failed(why.to_string());
                schedule.iter().for_each(|part| self.finish(part.key, reason.clone()));
                return;
            }
        };
        assert_eq!(outputs.len(), schedule.len(), "this is a bug: outputs of the runner");
        for (&Scheduled { key, tokens }, output) in schedule.iter().zip(outputs) {
            let Some(sequence) = self.scheduler.running.get_mut(&key) else { continue };
            self.scheduler.counters.generated_tokens += u64::from(output.chosen.is_some());
            let ended = sequence.advance(tokens, output);
            self.scheduler.register(key);
            if let Some(reason) = ended {
                self.finish(key, reason);
            }
        }
    }

    fn finish(&mut self, key: Key, reason: FinishReason) {
        if let Some(sequence) = self.scheduler.remove(key) {
            self.intake.count(&reason);
            sequence.finish(reason);
        }
    }

    fn measure(&mut self, schedule: &[Scheduled], times: StepTimes) {
        let tokens = schedule.iter().map(|part| part.tokens).sum();
        let step = StepMetrics { tokens, sequences: schedule.len(), times, ..Default::default() };
        if tokens > 0 {
            let report = self.runner.report();
            self.intake.update(|metrics| metrics.record(step, report));
        }
        self.publish();
    }

    /// Tells what is there now.
    fn publish(&mut self) {
        let Scheduler { blocks, waiting, running, counters, .. } = &self.scheduler;
        self.intake.update(|metrics| {
            metrics.running = running.len();
            metrics.waiting = waiting.len();
            metrics.kv_blocks_used = blocks.total() - blocks.available();
            metrics.kv_blocks_total = blocks.total();
            metrics.preemptions = counters.preemptions;
            metrics.prefix_cache_queries = counters.prefix_cache_queries;
            metrics.prefix_cache_hits = counters.prefix_cache_hits;
            metrics.prompt_tokens = counters.prompt_tokens;
            metrics.generated_tokens = counters.generated_tokens;
        });
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Engine").field("config", self.config()).finish_non_exhaustive()
    }
}
