//! Sends the requests when it is their time, as many together as allowed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::answer::Outcome;
use super::arrivals::Rate;
use super::client::{Client, Request};

/// What is sent, and when.
#[derive(Debug)]
pub struct Load {
    /// The requests, in the order in which they are sent.
    pub requests: Vec<Request>,
    /// Seconds from the start at which each is sent.
    pub times: Vec<f64>,
    /// Rate that the times follow.
    pub rate: Rate,
    /// How many may run at the same time.
    pub concurrency: Option<usize>,
}

/// What came of it.
#[derive(Debug)]
pub struct Run {
    /// One for each request, in their order.
    pub outcomes: Vec<Outcome>,
    /// Seconds from the start to the end of the last answer.
    pub duration: f64,
    /// When the rate passed each whole number, while it rises.
    pub rate_changes: Vec<(u64, DateTime<Utc>)>,
}

/// Sends all requests and waits for the last answer.
pub async fn run(client: &Arc<Client>, load: Load, bar: &ProgressBar) -> Run {
    let count = load.requests.len();
    let places = load.concurrency.unwrap_or(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(places));
    let started = Instant::now();
    let mut changes = RateChanges::default();
    let mut tasks: Vec<JoinHandle<Outcome>> = Vec::with_capacity(count);
    for (index, (request, time)) in load.requests.into_iter().zip(load.times).enumerate() {
        let time = started + Duration::from_secs_f64(time);
        if time > Instant::now() {
            tokio::time::sleep_until(time.into()).await;
        }
        changes.note(load.rate, index, count);
        let (client, places, bar) = (Arc::clone(client), Arc::clone(&places), bar.clone());
        let arrived = started.elapsed().as_secs_f64();
        tasks.push(tokio::spawn(async move {
            let place = places.acquire().await;
            let start = started.elapsed().as_secs_f64();
            let outcome = client.send(request).await;
            drop(place);
            bar.inc(1);
            Outcome { start, queue_time: start - arrived, ..outcome }
        }));
    }
    let mut outcomes = Vec::with_capacity(count);
    for task in tasks {
        outcomes.push(task.await.expect("this is a bug: a request panicked"));
    }
    let duration = started.elapsed().as_secs_f64();
    Run { outcomes, duration, rate_changes: changes.0 }
}

/// Whole requests a second that a rising rate has passed.
#[derive(Debug, Default)]
struct RateChanges(Vec<(u64, DateTime<Utc>)>);

impl RateChanges {
    fn note(&mut self, rate: Rate, index: usize, count: usize) {
        if let Rate::RampUp { .. } = rate {
            let whole = rate.at(index, count) as u64;
            let next = self.0.last().map_or(whole, |(passed, _)| passed + 1);
            self.0.extend((next..=whole).map(|passed| (passed, Utc::now())));
        }
    }
}

/// A bar over `count` requests on standard error, where that is a terminal and it is wanted.
pub fn progress_bar(count: usize, wanted: bool) -> ProgressBar {
    if !wanted {
        return ProgressBar::hidden();
    }
    let template = "{wide_bar} {pos}/{len} [{elapsed} < {eta}, {per_sec}]";
    let style = ProgressStyle::with_template(template)
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(count as u64).with_style(style)
}
