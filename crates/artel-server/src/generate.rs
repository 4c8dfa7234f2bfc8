//! The choices of one request as they come from the engine, in the order in which they come.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use artel_engine::{
    Event, EventStream, FinishReason, Finished, Request, StoppedBy, Timings, Token, TokenLogprobs,
    Usage,
};

use crate::app::App;
use crate::error::ApiError;

/// Answers that are being made. Dropping it cancels what is not complete.
#[derive(Debug)]
pub(crate) struct Choices {
    app: Arc<App>,
    choices: Vec<Choice>,
    /// Where to look first: the choice after the one that was heard last.
    next: usize,
}

#[derive(Debug)]
struct Choice {
    /// `None` after the end.
    events: Option<EventStream>,
    /// An event that has been taken from there before its turn.
    ahead: Option<Event>,
    /// What is known of the prompt, until it is told with the first token.
    prompt: Option<PromptLogprobs>,
    submitted: Instant,
    latest_token: Option<Instant>,
}

/// One entry a token of the prompt, the first of which nothing predicts.
pub(crate) type PromptLogprobs = Vec<Option<TokenLogprobs>>;

/// What happened to a choice: a token, the end, or both.
#[derive(Debug)]
pub(crate) struct Update {
    pub index: usize,
    pub prompt: Option<PromptLogprobs>,
    pub token: Option<Token>,
    pub finished: Option<Finished>,
}

impl Update {
    /// Text that became certain.
    pub(crate) fn text(&self) -> String {
        let token = self.token.as_ref().map_or("", |token| &token.text);
        let rest = self.finished.as_ref().map_or("", |finished| &finished.text);
        format!("{token}{rest}")
    }
}

impl Choices {
    /// Submits all or, when one is refused, none.
    pub(crate) fn submit(
        app: &Arc<App>,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Self, ApiError> {
        let submit = |request| {
            let submitted = Instant::now();
            let events = Some(app.model.engine.submit(request)?);
            let (ahead, prompt, latest_token) = (None, None, None);
            Ok::<_, ApiError>(Choice { events, ahead, prompt, submitted, latest_token })
        };
        let choices = requests.into_iter().map(submit).collect::<Result<_, _>>()?;
        Ok(Self { app: Arc::clone(app), choices, next: 0 })
    }

    /// How many answers there are.
    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// What happened next; `None` when all are complete.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        loop {
            let (index, event) = poll_fn(|context| self.poll_event(context)).await?;
            // A stream that ends without an end comes from an engine that is gone.
            let event = event.unwrap_or_else(|| Event::Finished(lost()));
            let (token, finished) = match event {
                Event::PromptLogprobs(prompt) => {
                    self.choices[index].prompt = Some(prompt);
                    continue;
                }
                Event::Token(token) => (Some(token), self.try_end(index)),
                Event::Finished(finished) => (None, Some(finished)),
            };
            self.record(index, token.is_some(), finished.as_ref());
            let prompt = self.choices[index].prompt.take();
            return Some(Update { index, prompt, token, finished });
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Option<Event>)>> {
        let mut open = false;
        for offset in 0..self.choices.len() {
            let index = (self.next + offset) % self.choices.len();
            let choice = &mut self.choices[index];
            let Some(events) = &mut choice.events else { continue };
            open = true;
            let event = match choice.ahead.take() {
                Some(event) => Poll::Ready(Some(event)),
                None => events.poll_recv(context),
            };
            if let Poll::Ready(event) = event {
                self.next = index + 1;
                return Poll::Ready(Some((index, event)));
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// The end of a choice, if it has come with the last token.
    fn try_end(&mut self, index: usize) -> Option<Finished> {
        let choice = &mut self.choices[index];
        match choice.events.as_mut()?.try_recv()? {
            Event::Finished(finished) => Some(finished),
            other => {
                choice.ahead = Some(other);
                None
            }
        }
    }

    fn record(&mut self, index: usize, is_token: bool, finished: Option<&Finished>) {
        let choice = &mut self.choices[index];
        let recorder = &self.app.recorder;
        if is_token {
            let now = Instant::now();
            match choice.latest_token.replace(now) {
                None => recorder.first_token(now - choice.submitted),
                Some(before) => recorder.next_token(now - before),
            }
        }
        if let Some(finished) = finished {
            choice.events = None;
            recorder.finished(finished, choice.submitted.elapsed());
        }
    }
}

fn lost() -> Finished {
    let reason = FinishReason::Failed("the engine has stopped working".to_owned());
    let zero = Duration::ZERO;
    let timings = Timings { queued: zero, prefill: zero, decode: zero };
    Finished { reason, text: String::new(), usage: Usage::default(), timings }
}

/// Why an answer ended, as clients are told: `finish_reason` and what it was stopped by.
///
/// # Errors
/// When it did not end but was cut off.
pub(crate) fn ending(
    reason: &FinishReason,
) -> Result<(&'static str, Option<serde_json::Value>), ApiError> {
    match reason {
        FinishReason::Length => Ok(("length", None)),
        FinishReason::Stop(StoppedBy::EndToken(_)) => Ok(("stop", None)),
        FinishReason::Stop(StoppedBy::StopToken(id)) => Ok(("stop", Some((*id).into()))),
        FinishReason::Stop(StoppedBy::StopString(text)) => Ok(("stop", Some(text.clone().into()))),
        FinishReason::ShutDown => Err(ApiError::stopped()),
        FinishReason::Cancelled => Err(ApiError::internal("the request was cancelled")),
        FinishReason::Failed(why) => Err(ApiError::internal(why.clone())),
    }
}
