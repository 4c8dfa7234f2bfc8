//! The engine on a thread of its own, and the channels to it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use artel_model::Tokenizer;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::event::{Event, FinishReason};
use crate::metrics::Metrics;
use crate::sequence::{Admission, Sequence};
use crate::{Engine, EngineConfig, Request, RequestId, Result, SubmitError};

/// The events of one request. Dropping it cancels the request before its next step.
#[derive(Debug)]
pub struct EventStream {
    id: RequestId,
    events: UnboundedReceiver<Event>,
}

impl EventStream {
    /// The request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last. An engine that died does not send the last one.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for code that is not async. Must not be called in async code.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// The same for code that is polled.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// The next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

/// What is shared by an engine and all who submit requests to it.
pub(crate) struct Intake {
    config: EngineConfig,
    vocabulary: usize,
    tokenizer: Tokenizer,
    submitted: AtomicU64,
    /// Requests that have never run.
    waiting: Arc<AtomicUsize>,
    stopping: AtomicBool,
    metrics: Mutex<Metrics>,
    /// Whether the thread of the engine is there.
    alive: Mutex<bool>,
    ended: Condvar,
}

/// A place in the queue, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct QueuePlace(Arc<AtomicUsize>);

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Intake {
    pub(crate) fn new(config: EngineConfig, vocabulary: usize, tokenizer: Tokenizer) -> Self {
        Self {
            config,
            vocabulary,
            tokenizer,
            submitted: AtomicU64::new(0),
            waiting: Arc::default(),
            stopping: AtomicBool::new(false),
            metrics: Mutex::default(),
            alive: Mutex::new(false),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub(crate) fn metrics(&self) -> Metrics {
        lock(&self.metrics).clone()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Metrics) -> T) -> T {
        read(&lock(&self.metrics))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Metrics)) {
        change(&mut lock(&self.metrics));
    }

    pub(crate) fn count(&self, reason: &FinishReason) {
        lock(&self.metrics).finished.record(reason);
    }

    /// Checks a request and gives it a place in the queue.
    pub(crate) fn accept(
        &self,
        request: Request,
    ) -> std::result::Result<(Box<Sequence>, EventStream), SubmitError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        let tokens_max = request.check(self.vocabulary, self.config.max_model_len)?;
        let place = self.place()?;
        let (sender, events) = unbounded_channel();
        let id = RequestId(self.submitted.fetch_add(1, Ordering::Relaxed));
        let admission = Admission {
            id,
            tokens_max,
            tokenizer: &self.tokenizer,
            vocabulary: self.vocabulary,
            events: sender,
            place,
        };
        Ok((Box::new(Sequence::new(request, admission)?), EventStream { id, events }))
    }

    fn place(&self) -> std::result::Result<QueuePlace, SubmitError> {
        let limit = self.config.max_waiting;
        let one_more = |waiting: usize| (waiting < limit).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(QueuePlace(Arc::clone(&self.waiting))),
            Err(waiting) => {
                let retry_after = self.retry_after();
                Err(SubmitError::QueueFull { waiting, limit, retry_after })
            }
        }
    }

    /// When a quarter of the queue should be gone, going by the requests that have ended.
    fn retry_after(&self) -> Duration {
        let (ended, busy) = {
            let metrics = lock(&self.metrics);
            (metrics.finished.total().max(1), metrics.total.sum())
        };
        let each = busy.as_secs_f64() / ended as f64;
        let quarter = each * self.config.max_waiting as f64 / 4.0;
        Duration::from_secs(quarter.ceil().clamp(1.0, 60.0) as u64)
    }
}

/// Talks to an engine on its thread. Clones talk to the same one.
#[derive(Clone)]
pub struct EngineHandle {
    intake: Arc<Intake>,
    commands: Sender<Command>,
}

enum Command {
    Submit(Box<Sequence>),
    Cancel(RequestId),
    /// Everything has to end by then.
    ShutDown(Instant),
}

impl EngineHandle {
    pub(crate) fn start(engine: Engine) -> Result<Self> {
        let (commands, received) = channel();
        let intake = Arc::clone(engine.intake());
        *lock(&intake.alive) = true;
        let alive = Alive(Arc::clone(&intake));
        std::thread::Builder::new().name("artel-engine".to_owned()).spawn(move || {
            let _alive = alive;
            serve(engine, &received);
        })?;
        Ok(Self { intake, commands })
    }

    /// Queues a request; does not wait for the model.
    ///
    /// # Errors
    /// [`SubmitError`] for a request that cannot be served, a full queue or an engine that is
    /// shutting down.
    pub fn submit(&self, request: Request) -> std::result::Result<EventStream, SubmitError> {
        let (sequence, stream) = self.intake.accept(request)?;
        self.commands.send(Command::Submit(sequence)).map_err(|_| SubmitError::Stopped)?;
        Ok(stream)
    }

    /// Ends a request before its next step. One that has ended already stays as it is.
    pub fn cancel(&self, id: RequestId) {
        // An engine that is gone has ended all requests.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// What the engine does and has done, as of its latest step.
    pub fn metrics(&self) -> Metrics {
        self.intake.metrics()
    }

    /// The sizes in use; `max_model_len` is the real one.
    pub fn config(&self) -> &EngineConfig {
        self.intake.config()
    }

    /// Size of the model's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.intake.vocabulary
    }

    /// Whether the engine's thread is there.
    pub fn is_alive(&self) -> bool {
        *lock(&self.intake.alive)
    }

    /// Refuses new requests, finishes what is there within `grace`, ends the rest with
    /// [`FinishReason::ShutDown`] and returns when the thread is gone. Blocks; must not be called in
    /// async code.
    pub fn shutdown(&self, grace: Duration) {
        self.intake.stopping.store(true, Ordering::Release);
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now + Duration::from_secs(1 << 30));
        // Sending fails when the thread is gone already.
        let _ = self.commands.send(Command::ShutDown(deadline));
        let alive = lock(&self.intake.alive);
        let ended = self.intake.ended.wait_while(alive, |alive| *alive);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EngineHandle")
            .field("config", self.config())
            .finish_non_exhaustive()
    }
}

/// Tells that the thread is gone, also when it panicked.
struct Alive(Arc<Intake>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Release);
        *lock(&self.0.alive) = false;
        self.0.ended.notify_all();
    }
}

/// What the engine's thread does: takes in commands between steps, and waits for them when there
/// is nothing to compute.
fn serve(mut engine: Engine, commands: &Receiver<Command>) {
    let mut deadline: Option<Instant> = None;
    loop {
        let idle = !engine.has_work();
        if idle && deadline.is_some() || deadline.is_some_and(|at| Instant::now() >= at) {
            break;
        }
        let command = match idle {
            true => commands.recv().map_err(|RecvError| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match command {
            Ok(Command::Submit(sequence)) => engine.enqueue(sequence),
            Ok(Command::Cancel(id)) => engine.cancel(id),
            Ok(Command::ShutDown(at)) => {
                deadline = Some(deadline.map_or(at, |earlier| earlier.min(at)));
            }
            Err(TryRecvError::Disconnected) if idle => break,
            Err(_) => engine.step(),
        }
    }
    for command in commands.try_iter() {
        if let Command::Submit(sequence) = command {
            engine.enqueue(sequence);
        }
    }
    engine.finish_all(&FinishReason::ShutDown);
}

/// Counters hold their meaning whatever a thread was doing when it panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
