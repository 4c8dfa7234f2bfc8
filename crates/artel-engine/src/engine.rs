//! The engine: `step` = schedule, run, postprocess.
//!
//! On a device the work of the host overlaps that of the device: while a step runs, the next one is
//! scheduled and launched, with tokens that the device is still choosing. What ended with such a
//! token is seen one step later, and what that step computed for it is dropped. Example of one
//! request: launch prompt; launch token 1, collect prompt; launch token 2, collect token 1, which
//! ends the answer; collect token 2, dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use artel_model::Tokenizer;

use crate::event::FinishReason;
use crate::handle::{EngineHandle, EventStream, Intake};
use crate::metrics::{Metrics, StepMetrics, StepTimes};
use crate::runner::{Launched, Runner, SequenceOutput, SequenceStep};
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
    running: Option<Step>,
    intake: Arc<Intake>,
}

/// A step that was launched.
struct Step {
    schedule: Vec<Scheduled>,
    times: StepTimes,
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
        let scheduler = Scheduler::new(config, blocks);
        let mut engine = Self { runner, scheduler, running: None, intake };
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

    /// A part of that, without a copy of all of it.
    pub fn read_metrics<T>(&self, read: impl FnOnce(&Metrics) -> T) -> T {
        self.intake.read(read)
    }

    /// Whether any request waits or runs, or a device computes.
    pub fn has_work(&self) -> bool {
        let idle = self.scheduler.waiting.is_empty() && self.scheduler.running.is_empty();
        !idle || self.running.is_some()
    }

    /// Gives the engine a thread, which ends when nobody holds the handle any more and everything
    /// is answered, or by [`EngineHandle::shutdown`].
    ///
    /// # Errors
    /// [`EngineError::Thread`](crate::EngineError::Thread) when there is no thread to have.
    pub fn spawn(self) -> Result<EngineHandle> {
        EngineHandle::start(self)
    }

    /// Computes one step, or launches it and takes in the one that was launched before. What happens
    /// to requests is told to their streams; a step that fails ends those that took part in it.
    pub fn step(&mut self) {
        if self.scheduler.running.values().any(|sequence| sequence.waits_for_its_token()) {
            self.collect();
        }
        let started = Instant::now();
        self.drop_cancelled();
        let schedule = self.schedule();
        let scheduled = Instant::now();
        let launched = self.launch(&schedule);
        let times = StepTimes {
            schedule: scheduled - started,
            run: scheduled.elapsed(),
            ..StepTimes::default()
        };
        self.collect();
        let step = Step { schedule, times };
        match launched {
            Ok(Launched::Running) => self.running = Some(step),
            Ok(Launched::Done(outputs)) => self.complete(step, Ok(outputs)),
            Err(why) => self.complete(step, Err(why)),
        }
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
        schedule.retain(|&Scheduled { key, tokens, .. }| {
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

    fn launch(&mut self, schedule: &[Scheduled]) -> Result<Launched> {
        if schedule.is_empty() {
            return Ok(Launched::Done(Vec::new()));
        }
        let running = &self.scheduler.running;
        let batch: Vec<SequenceStep<'_>> =
            schedule.iter().map(|part| running[&part.key].step(part.tokens)).collect();
        let launched = self.runner.launch(&batch)?;
        for (place, Scheduled { key, tokens, .. }) in schedule.iter().enumerate() {
            let sequence = self.scheduler.running.get_mut(key);
            sequence.expect("this is a bug: a sequence is gone").launched(*tokens, place);
        }
        Ok(launched)
    }

    /// Takes in the step that runs, if there is one.
    fn collect(&mut self) {
        let Some(mut step) = self.running.take() else { return };
        let started = Instant::now();
        let outputs = self.runner.collect();
        step.times.wait = started.elapsed();
        step.times.run += step.times.wait;
        self.complete(step, outputs);
    }

    fn complete(&mut self, step: Step, outputs: Result<Vec<SequenceOutput>>) {
        let Step { schedule, mut times } = step;
        let started = Instant::now();
        self.postprocess(&schedule, outputs);
        times.postprocess = started.elapsed();
        self.measure(&schedule, times);
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
        for (&Scheduled { key, computed, .. }, output) in schedule.iter().zip(outputs) {
            // Who has ended or given way meanwhile is not there.
            let Some(sequence) = self.scheduler.running.get_mut(&key) else { continue };
            self.scheduler.counters.generated_tokens += u64::from(output.chosen.is_some());
            let ended = sequence.advance(output);
            self.scheduler.register(key, computed);
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
