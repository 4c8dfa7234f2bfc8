//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use super::UsageSum;
use crate::error::ApiError;
use crate::generate::{Choices, Update};

/// How often a client hears of a request that waits, so that nobody in between hangs up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How an endpoint writes its chunks.
pub(crate) trait Chunks: Send + 'static {
    /// The chunk for what happened.
    ///
    /// # Errors
    /// When the answer was cut off; nothing comes after the error.
    fn chunk(&mut self, update: Update) -> Result<Value, ApiError>;

    /// The chunk that counts tokens and has no choices.
    fn usage(&self, usage: &UsageSum) -> Value;
}

struct Streaming<C> {
    choices: Choices,
    chunks: C,
    /// Answers to each prompt.
    per_prompt: usize,
    /// Set when usage is wanted.
    usage: Option<UsageSum>,
    ready: VecDeque<String>,
    is_over: bool,
}

/// Sends chunks as they become known. A client that goes away takes its requests with it.
pub(crate) fn stream<C: Chunks>(
    choices: Choices,
    chunks: C,
    per_prompt: usize,
    includes_usage: bool,
) -> Response {
    let usage = includes_usage.then(UsageSum::default);
    let (ready, is_over) = (VecDeque::new(), false);
    let state = Streaming { choices, chunks, per_prompt, usage, ready, is_over };
    let events = stream::unfold(state, |mut state| async move {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl<C: Chunks> Streaming<C> {
    async fn next(&mut self) -> Option<String> {
        if let Some(data) = self.ready.pop_front() {
            return Some(data);
        }
        if self.is_over {
            return None;
        }
        let Some(update) = self.choices.next().await else {
            self.is_over = true;
            self.ready.extend(self.usage.map(|usage| self.chunks.usage(&usage).to_string()));
            self.ready.push_back("[DONE]".to_owned());
            return self.ready.pop_front();
        };
        if let (Some(sum), Some(finished)) = (&mut self.usage, &update.finished) {
            sum.add(&finished.usage, update.index % self.per_prompt == 0);
        }
        match self.chunks.chunk(update) {
            Ok(chunk) => Some(chunk.to_string()),
            Err(error) => {
                self.is_over = true;
                Some(error.object().to_string())
            }
        }
    }
}
