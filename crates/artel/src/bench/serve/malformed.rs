//! What bad requests cost the others: the same load without and with malformed requests among it, in
//! turns, so that whatever else the machine does meets both.

use std::collections::BTreeMap;
use std::sync::Arc;

use indicatif::ProgressBar;
use rand::{Rng, RngExt};
use serde_json::{Map, Value, json};

use super::answer::Outcome;
use super::client::{Client, Request};
use super::load::{self, Load, Run};
use crate::bench::statistics::percentile;

/// Of the gaps between tokens.
const PERCENT: f64 = 99.0;
/// Characters of a prompt that is too long for a model.
const LONG_PROMPT: usize = 1 << 20;
/// Bytes of a body that no server has a use for.
const GIANT_BODY: usize = 24 << 20;
/// How an answer begins in an error: `HTTP 400`.
const STATUS_LENGTH: usize = 8;

/// How much of the load is malformed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Malformed {
    /// Share of all requests, between 0 and 1.
    pub share: f64,
    /// How often the load is sent without and with them.
    pub rounds: usize,
}

impl Malformed {
    /// Runs of the load.
    pub fn runs(&self) -> usize {
        2 * self.rounds
    }

    /// Malformed requests among `good` others, at least one.
    fn count(&self, good: usize) -> usize {
        ((good as f64 * self.share / (1.0 - self.share)).round() as usize).max(1)
    }
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    NotJson,
    WrongType,
    PromptTooLong,
    UnknownModel,
    GiantBody,
}

impl Fault {
    const ALL: [Self; 5] =
        [Self::NotJson, Self::WrongType, Self::PromptTooLong, Self::UnknownModel, Self::GiantBody];

    fn name(self) -> &'static str {
        match self {
            Self::NotJson => "half a JSON object",
            Self::WrongType => "field of a wrong type",
            Self::PromptTooLong => "prompt too long",
            Self::UnknownModel => "unknown model",
            Self::GiantBody => "giant body",
        }
    }

    /// `request` with this fault.
    fn spoil(self, request: &Request) -> Request {
        let mut spoiled = request.clone();
        spoiled.id += "-malformed";
        if self == Self::NotJson {
            spoiled.body.truncate(request.body.len() / 2);
            return spoiled;
        }
        let body: Map<String, Value> = serde_json::from_slice(&request.body)
            .expect("this is a bug: a request that is no JSON object");
        let body = self.of_fields(body);
        spoiled.body = Value::from(body).to_string().into_bytes();
        spoiled
    }

    fn of_fields(self, mut body: Map<String, Value>) -> Map<String, Value> {
        let mut lengthen = |to: usize| {
            let text = "why ".repeat(to.div_ceil(4));
            match body.contains_key("messages") {
                true => {
                    body.insert("messages".to_owned(), json!([{"role": "user", "content": text}]))
                }
                false => body.insert("prompt".to_owned(), text.into()),
            };
        };
        match self {
            Self::PromptTooLong => lengthen(LONG_PROMPT),
            Self::GiantBody => lengthen(GIANT_BODY),
            Self::WrongType => drop(body.insert("temperature".to_owned(), json!({"hot": []}))),
            Self::UnknownModel => drop(body.insert("model".to_owned(), "no-such-model".into())),
            Self::NotJson => {}
        }
        body
    }
}

/// What the malformed requests did.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    share: f64,
    /// Milliseconds of each round without and with them.
    rounds: Vec<[f64; 2]>,
    /// The same over the gaps of all rounds.
    together: [f64; 2],
    /// How often each fault was answered in which way.
    answers: BTreeMap<Fault, BTreeMap<String, usize>>,
}

impl Comparison {
    /// The 99th percentile with malformed requests over that without.
    pub fn ratio(&self) -> f64 {
        self.together[1] / self.together[0]
    }

    /// (label, number) of each line of the report.
    pub fn lines(&self) -> Vec<(String, f64)> {
        let [without, with] = self.together;
        let ratios: Vec<f64> = self.rounds.iter().map(|[without, with]| with / without).collect();
        let mut lines = vec![
            ("Share of all requests (%):".to_owned(), 100.0 * self.share),
            ("Rounds:".to_owned(), self.rounds.len() as f64),
            ("P99 ITL without them (ms):".to_owned(), without),
            ("P99 ITL with them (ms):".to_owned(), with),
            ("P99 ITL with / without:".to_owned(), self.ratio()),
            ("The same, median of rounds:".to_owned(), percentile(&sorted(ratios), 50.0)),
        ];
        for (fault, answers) in &self.answers {
            for (answer, &count) in answers {
                lines.push((format!("{}: {answer}:", fault.name()), count as f64));
            }
        }
        lines
    }

    /// As a field of the result.
    pub fn json(&self) -> Value {
        let [without, with] = self.together;
        let rounds =
            self.rounds.iter().map(|[without, with]| json!({"without": without, "with": with}));
        let answers = self.answers.iter().map(|(fault, answers)| (fault.name(), json!(answers)));
        json!({
            "share": self.share,
            "p99_itl_ms": {"without": without, "with": with, "ratio": self.ratio()},
            "rounds_p99_itl_ms": rounds.collect::<Vec<_>>(),
            "answers": answers.collect::<BTreeMap<_, _>>(),
        })
    }
}

/// Sends `load` in [`Malformed::runs`] parts at the same times, every other with malformed requests
/// among it. The run is that of the good requests beside them, one part after the other.
pub async fn compare(
    client: &Arc<Client>,
    wanted: Malformed,
    load: &Load,
    random: &mut impl Rng,
    bar: &ProgressBar,
) -> (Run, Comparison) {
    let mut beside = Run { outcomes: Vec::new(), duration: 0.0, rate_changes: Vec::new() };
    let mut gaps = [Vec::new(), Vec::new()];
    let (mut rounds, mut answers) = (Vec::new(), BTreeMap::new());
    let mut faults = Fault::ALL.into_iter().cycle();
    let parts: Vec<&[Request]> = load.requests.chunks_exact(load.times.len()).collect();
    for (round, pair) in parts.chunks_exact(2).enumerate() {
        let mut percentiles = [0.0; 2];
        for (half, requests) in pair.iter().enumerate() {
            // Whoever comes second finds a warmer machine: the two take turns.
            let with = (half + round) % 2;
            let count = if with == 1 { wanted.count(requests.len()) } else { 0 };
            let faults = faults.by_ref().take(count);
            let (requests, times, faults) = mixed(requests, &load.times, faults, random);
            let part = Load { requests, times, rate: load.rate, concurrency: load.concurrency };
            let run = load::run(client, part, bar).await;
            let good = sort_out(run.outcomes, &faults, &mut answers);
            let own = sorted(good.iter().flat_map(|outcome| outcome.itls.clone()).collect());
            percentiles[with] = 1e3 * p99(&own);
            gaps[with].extend(own);
            if with == 1 {
                let start = beside.duration;
                let shifted = |good: Outcome| Outcome { start: good.start + start, ..good };
                beside.outcomes.extend(good.into_iter().map(shifted));
                beside.duration += run.duration;
            }
        }
        rounds.push(percentiles);
    }
    let together = gaps.map(|gaps| 1e3 * p99(&sorted(gaps)));
    (beside, Comparison { share: wanted.share, rounds, together, answers })
}

/// The good requests with malformed ones at random places, their times and faults.
fn mixed(
    requests: &[Request],
    times: &[f64],
    faults: impl Iterator<Item = Fault>,
    random: &mut impl Rng,
) -> (Vec<Request>, Vec<f64>, Vec<Option<Fault>>) {
    let mut all: Vec<(usize, Option<Fault>)> =
        faults.map(|fault| (random.random_range(0..requests.len()), Some(fault))).collect();
    all.extend((0..requests.len()).map(|place| (place, None)));
    // Stable: a malformed request goes ahead of the good one whose place and time it has.
    all.sort_by_key(|(place, _)| *place);
    let request = |&(place, fault): &(usize, Option<Fault>)| match fault {
        None => requests[place].clone(),
        Some(fault) => fault.spoil(&requests[place]),
    };
    (
        all.iter().map(request).collect(),
        all.iter().map(|(place, _)| times[*place]).collect(),
        all.into_iter().map(|(_, fault)| fault).collect(),
    )
}

/// The outcomes of good requests; how the others were answered is counted.
fn sort_out(
    outcomes: Vec<Outcome>,
    faults: &[Option<Fault>],
    answers: &mut BTreeMap<Fault, BTreeMap<String, usize>>,
) -> Vec<Outcome> {
    let mut good = Vec::new();
    for (outcome, fault) in outcomes.into_iter().zip(faults) {
        match fault {
            None => good.push(outcome),
            Some(fault) => {
                *answers.entry(*fault).or_default().entry(answer(&outcome)).or_default() += 1;
            }
        }
    }
    good
}

/// How a request was answered: by its status, a whole answer, or no answer.
fn answer(outcome: &Outcome) -> String {
    match &outcome.error {
        None => "answered".to_owned(),
        Some(error) if error.starts_with("HTTP ") => error.chars().take(STATUS_LENGTH).collect(),
        Some(_) => "no answer".to_owned(),
    }
}

fn sorted(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers
}

/// Not a number where there is no gap.
fn p99(sorted: &[f64]) -> f64 {
    if sorted.is_empty() { f64::NAN } else { percentile(sorted, PERCENT) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn request(body: &Value) -> Request {
        Request { id: "a".to_owned(), body: body.to_string().into_bytes(), prompt_tokens: 1 }
    }

    #[test]
    fn every_fault_spoils_one_thing() {
        let bodies = [
            json!({"model": "m", "prompt": "hi", "max_tokens": 5}),
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        ];
        for body in &bodies {
            let spoiled = |fault: Fault| fault.spoil(&request(body)).body;
            assert!(serde_json::from_slice::<Value>(&spoiled(Fault::NotJson)).is_err());
            assert!(spoiled(Fault::PromptTooLong).len() >= LONG_PROMPT);
            assert!(spoiled(Fault::GiantBody).len() >= GIANT_BODY);
            for (fault, field) in
                [(Fault::WrongType, "temperature"), (Fault::UnknownModel, "model")]
            {
                let spoiled: Value = serde_json::from_slice(&spoiled(fault)).unwrap();
                assert_ne!(spoiled[field], body[field]);
                assert_eq!(spoiled["messages"], body["messages"]);
            }
        }
    }

    #[test]
    fn good_requests_keep_their_order_and_times() {
        let good: Vec<Request> = (0..20).map(|index| request(&json!({"seed": index}))).collect();
        let times: Vec<f64> = (0..20).map(f64::from).collect();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let wanted = Malformed { share: 0.2, rounds: 2 };
        assert_eq!((wanted.count(20), wanted.count(1), wanted.runs()), (5, 1, 4));
        let (requests, at, faults) = mixed(&good, &times, Fault::ALL.into_iter(), &mut random);
        assert_eq!((requests.len(), at.len()), (25, 25));
        assert!(at.is_sorted());
        let all: std::collections::BTreeSet<_> = faults.iter().flatten().collect();
        assert_eq!(all.len(), Fault::ALL.len());
        let kept = requests.iter().zip(&at).zip(&faults).filter(|(_, fault)| fault.is_none());
        let kept: Vec<_> = kept.map(|((request, at), _)| (request.body.clone(), *at)).collect();
        let expected = good.iter().zip(&times).map(|(request, at)| (request.body.clone(), *at));
        assert_eq!(kept, expected.collect::<Vec<_>>());
    }

    #[test]
    fn answers_are_counted_and_gaps_compared() {
        let refused =
            Outcome { error: Some("HTTP 400 Bad Request: no".into()), ..Outcome::default() };
        let broken = Outcome { error: Some("reset".into()), ..Outcome::default() };
        let mut answers = BTreeMap::new();
        let outcomes = vec![Outcome::default(), refused, broken, Outcome::default()];
        let faults = [None, Some(Fault::NotJson), Some(Fault::GiantBody), Some(Fault::NotJson)];
        assert_eq!(sort_out(outcomes, &faults, &mut answers).len(), 1);
        let rounds = vec![[10.0, 11.0], [10.0, 12.0], [20.0, 20.0]];
        let comparison = Comparison { share: 0.1, rounds, together: [10.0, 11.5], answers };
        let json = comparison.json();
        assert_eq!(json["p99_itl_ms"]["ratio"], 1.15);
        assert_eq!(json["answers"]["half a JSON object"], json!({"HTTP 400": 1, "answered": 1}));
        assert_eq!(json["answers"]["giant body"]["no answer"], 1);
        let lines = comparison.lines();
        assert!(lines.contains(&("The same, median of rounds:".to_owned(), 1.1)), "{lines:?}");
        assert!(p99(&[]).is_nan());
    }
}
