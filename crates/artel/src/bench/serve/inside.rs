//! What an Artel server tells about itself at `/metrics`: where the time went and which experts
//! worked. Counters only grow, so a run is the difference of two readings.

use std::collections::BTreeMap;

/// The counter by which an Artel server is known.
const STEPS: &str = "artel:steps_total";
/// Seconds of the engine's steps, by `phase`.
const STEP_SECONDS: &str = "artel:step_seconds_total";
/// Pairs of a token and an expert, by `layer` and `expert`.
const EXPERT_TOKENS: &str = "artel:expert_tokens_total";
/// Experts with at least one token, summed over steps, by `layer`.
const ACTIVE_SUM: &str = "artel:active_experts_sum";
/// Steps of that sum.
const ACTIVE_COUNT: &str = "artel:active_experts_count";

/// Phases of a step, in their order.
const PHASES: [&str; 3] = ["schedule", "run", "postprocess"];

/// One reading of the counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    steps: f64,
    phases: BTreeMap<String, f64>,
    /// By layer and expert.
    tokens: BTreeMap<(String, String), f64>,
    active_sum: BTreeMap<String, f64>,
    active_count: BTreeMap<String, f64>,
}

impl Reading {
    /// Reads Prometheus' text format; `None` when it is not an Artel server's.
    pub fn parse(text: &str) -> Option<Self> {
        let mut reading = Self::default();
        let mut is_artel = false;
        for sample in text.lines().filter_map(Sample::parse) {
            let label = |name| sample.label(name).unwrap_or_default().to_owned();
            let slot = match sample.name {
                STEPS => {
                    is_artel = true;
                    &mut reading.steps
                }
                STEP_SECONDS => reading.phases.entry(label("phase")).or_default(),
                EXPERT_TOKENS => {
                    reading.tokens.entry((label("layer"), label("expert"))).or_default()
                }
                ACTIVE_SUM => reading.active_sum.entry(label("layer")).or_default(),
                ACTIVE_COUNT => reading.active_count.entry(label("layer")).or_default(),
                _ => continue,
            };
            *slot += sample.value;
        }
        is_artel.then_some(reading)
    }
}

/// One line of Prometheus' text format.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let (name, labels, value) = match line.split_once('{') {
            Some((name, rest)) => {
                let (labels, value) = rest.rsplit_once('}')?;
                (name, labels, value)
            }
            None => {
                let (name, value) = line.split_once(char::is_whitespace)?;
                (name, "", value)
            }
        };
        // A time may follow the value.
        let value = value.split_whitespace().next()?.parse().ok()?;
        Some(Self { name: name.trim_end(), labels, value })
    }

    /// The value of a label as it is written; those we look for need no escapes.
    fn label(&self, wanted: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once("=\"")?;
            let end = closing_quote(after)?;
            if name.trim_matches([',', ' ']) == wanted {
                return Some(&after[..end]);
            }
            rest = &after[end + 1..];
        }
    }
}

/// Where the first quote is that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// One MoE layer over a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layer {
    /// Tokens of each expert.
    pub tokens: Vec<f64>,
    /// Experts with a token, summed over steps.
    pub active_sum: f64,
    /// Steps of that sum.
    pub active_count: f64,
}

impl Layer {
    /// Shannon entropy of the load as a share of its maximum: 1 when all experts get the same, 0 when
    /// one gets all. `None` without tokens.
    pub fn entropy(&self) -> Option<f64> {
        let total: f64 = self.tokens.iter().sum();
        if total <= 0.0 {
            return None;
        }
        if self.tokens.len() == 1 {
            return Some(1.0);
        }
        let shares = self.tokens.iter().map(|tokens| tokens / total).filter(|share| *share > 0.0);
        let entropy: f64 = shares.map(|share| -share * share.ln()).sum();
        Some(entropy / (self.tokens.len() as f64).ln())
    }

    /// Load of the busiest expert over the mean. `None` without tokens.
    pub fn imbalance(&self) -> Option<f64> {
        let total: f64 = self.tokens.iter().sum();
        let most = self.tokens.iter().copied().fold(0.0, f64::max);
        (total > 0.0).then(|| most * self.tokens.len() as f64 / total)
    }
}

/// What happened inside the server during a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Inside {
    /// Steps of the engine.
    pub steps: f64,
    /// Seconds by phase, in the order of a step.
    pub step_seconds: Vec<(String, f64)>,
    /// MoE layers by name.
    pub layers: BTreeMap<String, Layer>,
}

/// Expert load over all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Mean entropy of the layers.
    pub entropy: f64,
    /// Entropy of the most uneven layer.
    pub entropy_min: f64,
    /// Mean of the busiest expert's load over the mean load.
    pub imbalance: f64,
}

impl Inside {
    /// What happened between two readings; `None` when a counter shrank: the server was restarted.
    pub fn between(before: &Reading, after: &Reading) -> Option<Self> {
        let steps = after.steps - before.steps;
        let mut shrank = steps < 0.0;
        let mut grown = |now: f64, then: Option<&f64>| {
            let grown = now - then.copied().unwrap_or(0.0);
            shrank |= grown < 0.0;
            grown
        };
        let mut step_seconds: Vec<(String, f64)> = after
            .phases
            .iter()
            .map(|(phase, now)| (phase.clone(), grown(*now, before.phases.get(phase))))
            .collect();
        let place = |phase: &str| PHASES.iter().position(|known| *known == phase);
        step_seconds.sort_by_key(|(phase, _)| place(phase).unwrap_or(PHASES.len()));
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        for (key, now) in &after.tokens {
            let tokens = grown(*now, before.tokens.get(key));
            layers.entry(key.0.clone()).or_default().tokens.push(tokens);
        }
        for (layer, now) in &after.active_sum {
            let sum = grown(*now, before.active_sum.get(layer));
            layers.entry(layer.clone()).or_default().active_sum = sum;
        }
        for (layer, now) in &after.active_count {
            let count = grown(*now, before.active_count.get(layer));
            layers.entry(layer.clone()).or_default().active_count = count;
        }
        (!shrank).then_some(Self { steps, step_seconds, layers })
    }

    /// Share of `duration` seconds in which the engine computed no step.
    pub fn idle_share(&self, duration: f64) -> f64 {
        let busy: f64 = self.step_seconds.iter().map(|(_, seconds)| seconds).sum();
        (1.0 - busy / duration).max(0.0)
    }

    /// Expert load, where any layer had tokens.
    pub fn load(&self) -> Option<Load> {
        let values = |of: fn(&Layer) -> Option<f64>| -> Vec<f64> {
            self.layers.values().filter_map(of).collect()
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (entropies, imbalances) = (values(Layer::entropy), values(Layer::imbalance));
        (!entropies.is_empty()).then(|| Load {
            entropy: mean(&entropies),
            entropy_min: entropies.iter().copied().fold(f64::INFINITY, f64::min),
            imbalance: mean(&imbalances),
        })
    }

    /// Experts with at least one token, mean over steps and layers.
    pub fn active_experts(&self) -> Option<f64> {
        let sum: f64 = self.layers.values().map(|layer| layer.active_sum).sum();
        let count: f64 = self.layers.values().map(|layer| layer.active_count).sum();
        (count > 0.0).then(|| sum / count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
# HELP artel:steps_total Steps.
# TYPE artel:steps_total counter
artel:steps_total{model_name=\"a, \\\"b\\\"}\"} 10
artel:step_seconds_total{phase=\"run\",model_name=\"a\"} 1.5
artel:step_seconds_total{phase=\"schedule\"} 0.5
artel:expert_tokens_total{layer=\"0\",expert=\"0\"} 5
artel:expert_tokens_total{layer=\"0\",expert=\"1\"} 5
process_cpu_seconds_total 3 1700000000000
";
    const AFTER: &str = "\
artel:steps_total 30
artel:step_seconds_total{phase=\"postprocess\"} 0.25
artel:step_seconds_total{phase=\"run\"} 3.5
artel:step_seconds_total{phase=\"schedule\"} 0.75
artel:expert_tokens_total{layer=\"0\",expert=\"0\"} 35
artel:expert_tokens_total{layer=\"0\",expert=\"1\"} 15
artel:active_experts_sum{layer=\"0\"} 30
artel:active_experts_count{layer=\"0\"} 20
";

    #[test]
    fn a_run_is_the_difference_of_two_readings() {
        let (before, after) = (Reading::parse(BEFORE).unwrap(), Reading::parse(AFTER).unwrap());
        let inside = Inside::between(&before, &after).unwrap();
        assert_eq!(inside.steps, 20.0);
        let phases: Vec<&str> = inside.step_seconds.iter().map(|(phase, _)| &**phase).collect();
        assert_eq!(phases, PHASES);
        assert_eq!(inside.step_seconds[1].1, 2.0);
        assert_eq!(inside.idle_share(5.0), 0.5);
        assert_eq!(inside.layers["0"].tokens, [30.0, 10.0]);
        let load = inside.load().unwrap();
        // -(3/4 ln 3/4 + 1/4 ln 1/4) / ln 2 = 2 - 3/4 log2 3
        assert!((load.entropy - (2.0 - 0.75 * 3f64.log2())).abs() < 1e-12);
        assert_eq!((load.imbalance, load.entropy_min), (1.5, load.entropy));
        assert_eq!(inside.active_experts(), Some(1.5));
        assert_eq!(Inside::between(&after, &before), None);
    }

    #[test]
    fn other_servers_say_nothing_of_this() {
        assert_eq!(Reading::parse("vllm:num_requests_running 3\nartel:other 1\n"), None);
        assert_eq!(Reading::parse("<html>{}</html>\n}{\n"), None);
    }

    #[test]
    fn extremes_of_load() {
        let layer = |tokens: &[f64]| Layer { tokens: tokens.to_vec(), ..Layer::default() };
        assert_eq!(layer(&[4.0, 0.0, 0.0, 0.0]).entropy(), Some(0.0));
        assert_eq!(layer(&[4.0, 0.0, 0.0, 0.0]).imbalance(), Some(4.0));
        assert_eq!(layer(&[0.0, 0.0]).entropy(), None);
        assert_eq!(layer(&[3.0]).entropy(), Some(1.0));
    }
}
