//! The report as text: the lines of vLLM's serving benchmark, and what an Artel server adds.

use std::fmt::Write;

use super::Beside;
use super::inside::Inside;
use super::metrics::Summary;

const WIDTH: usize = 50;

/// What the report tells besides the numbers of the run.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Limit of concurrent requests.
    pub concurrency: Option<usize>,
    /// Requests a second; infinite: all at once.
    pub request_rate: f64,
    /// Whether answers were counted in tokens and not in events.
    pub tokens_known: bool,
}

/// The whole report, with a line end after the last line.
pub fn text(summary: &Summary, setting: &Setting, beside: &Beside) -> String {
    let mut report = Report::default();
    report.title(" Serving Benchmark Result ", '=');
    report.integer("Successful requests:", summary.completed);
    report.integer("Failed requests:", summary.failed);
    if let Some(limit) = setting.concurrency {
        report.integer("Maximum request concurrency:", limit);
    }
    if setting.request_rate.is_finite() {
        report.float("Request rate configured (RPS):", setting.request_rate);
    }
    report.float("Benchmark duration (s):", summary.duration);
    report.integer("Total input tokens:", summary.total_input);
    if setting.tokens_known {
        report.integer("Total generated tokens:", summary.total_output);
    }
    report.float("Request throughput (req/s):", summary.request_throughput());
    if let Some(goodput) = summary.goodput {
        report.float("Request goodput (req/s):", goodput);
    }
    if setting.tokens_known {
        report.float("Output token throughput (tok/s):", summary.output_throughput());
        report.float("Peak output token throughput (tok/s):", summary.peak_tokens as f64);
    }
    report.float("Peak concurrent requests:", summary.peak_concurrent as f64);
    if setting.tokens_known {
        report.float("Total token throughput (tok/s):", summary.total_throughput());
    }
    report.measures(summary);
    if let Some(inside) = &beside.inside {
        report.inside(inside, summary.duration);
    }
    if let Some(malformed) = &beside.malformed {
        report.title("Malformed Requests", '-');
        malformed.lines().iter().for_each(|(label, value)| report.float(label, *value));
    }
    report.title("", '=');
    report.0
}

/// How a percentile is written: without decimals where it has none.
pub fn percentile_name(percent: f64) -> String {
    format!("{percent}")
}

#[derive(Debug, Default)]
struct Report(String);

impl Report {
    fn line(&mut self, label: &str, value: &str) {
        writeln!(self.0, "{label:<40} {value:<10}").expect("this is a bug: a string is full");
    }

    fn integer(&mut self, label: &str, value: usize) {
        self.line(label, &value.to_string());
    }

    fn float(&mut self, label: &str, value: f64) {
        self.line(label, &format!("{value:.2}"));
    }

    fn title(&mut self, title: &str, filler: char) {
        let around = WIDTH.saturating_sub(title.chars().count());
        let fill = |count: usize| filler.to_string().repeat(count);
        let (left, right) = (fill(around / 2), fill(around - around / 2));
        self.0 += &format!("{left}{title}{right}\n");
    }

    fn measures(&mut self, summary: &Summary) {
        for (measure, statistics) in &summary.measures {
            let name = measure.name();
            self.title(measure.title(), '-');
            self.float(&format!("Mean {name} (ms):"), statistics.mean);
            self.float(&format!("Median {name} (ms):"), statistics.median);
            for (percent, value) in &statistics.percentiles {
                self.float(&format!("P{} {name} (ms):", percentile_name(*percent)), *value);
            }
        }
    }

    fn inside(&mut self, inside: &Inside, duration: f64) {
        self.title("Inside the Server", '-');
        self.integer("Engine steps:", inside.steps as usize);
        for (phase, seconds) in &inside.step_seconds {
            self.float(&format!("Time in {phase} (%):"), 100.0 * seconds / duration);
        }
        self.float("Time between steps (%):", 100.0 * inside.idle_share(duration));
        if let Some(load) = inside.load() {
            self.title("Mixture of Experts", '-');
            self.float("Expert load entropy (% of uniform):", 100.0 * load.entropy);
            self.float("Lowest layer's entropy (% of uniform):", 100.0 * load.entropy_min);
            self.float("Busiest expert's load (x mean):", load.imbalance);
        }
        if let Some(active) = inside.active_experts() {
            self.float("Active experts per step and layer:", active);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inside::{Inside, Layer};
    use super::super::metrics::{Measure, Statistics};
    use super::*;

    fn summary() -> Summary {
        let statistics = Statistics {
            mean: 12.345,
            median: 11.0,
            std: 1.0,
            percentiles: vec![(99.0, 20.126), (99.9, 1234.5)],
        };
        Summary {
            completed: 64,
            failed: 0,
            duration: 4.0,
            total_input: 65536,
            total_output: 8192,
            goodput: None,
            peak_tokens: 2304,
            peak_concurrent: 64,
            measures: vec![(Measure::Ttft, statistics.clone()), (Measure::Tpot, statistics)],
        }
    }

    const SETTING: Setting =
        Setting { concurrency: None, request_rate: f64::INFINITY, tokens_known: true };

    #[test]
    fn the_lines_are_those_of_the_peer_to_the_letter() {
        let expected = "\
============ Serving Benchmark Result ============
Successful requests:                     64        
Failed requests:                         0         
Benchmark duration (s):                  4.00      
Total input tokens:                      65536     
Total generated tokens:                  8192      
Request throughput (req/s):              16.00     
Output token throughput (tok/s):         2048.00   
Peak output token throughput (tok/s):    2304.00   
Peak concurrent requests:                64.00     
Total token throughput (tok/s):          18432.00  
---------------Time to First Token----------------
Mean TTFT (ms):                          12.35     
Median TTFT (ms):                        11.00     
P99 TTFT (ms):                           20.13     
P99.9 TTFT (ms):                         1234.50   
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          12.35     
Median TPOT (ms):                        11.00     
P99 TPOT (ms):                           20.13     
P99.9 TPOT (ms):                         1234.50   
==================================================
";
        assert_eq!(text(&summary(), &SETTING, &Beside::default()), expected);
    }

    #[test]
    fn optional_lines_stand_where_the_peer_has_them() {
        let setting = Setting { concurrency: Some(64), request_rate: 10.0, tokens_known: false };
        let summary = Summary { goodput: Some(3.0), measures: Vec::new(), ..summary() };
        let expected = "\
============ Serving Benchmark Result ============
Successful requests:                     64        
Failed requests:                         0         
Maximum request concurrency:             64        
Request rate configured (RPS):           10.00     
Benchmark duration (s):                  4.00      
Total input tokens:                      65536     
Request throughput (req/s):              16.00     
Request goodput (req/s):                 3.00      
Peak concurrent requests:                64.00     
==================================================
";
        assert_eq!(text(&summary, &setting, &Beside::default()), expected);
    }

    #[test]
    fn an_artel_server_tells_more() {
        let layer = Layer { tokens: vec![1.0, 1.0], active_sum: 6.0, active_count: 4.0 };
        let inside = Inside {
            steps: 40.0,
            step_seconds: vec![("schedule".to_owned(), 0.04), ("run".to_owned(), 3.56)],
            layers: [("0".to_owned(), layer)].into(),
        };
        let beside = Beside { inside: Some(inside), malformed: None };
        let found = text(&Summary { measures: Vec::new(), ..summary() }, &SETTING, &beside);
        let expected = "\
----------------Inside the Server-----------------
Engine steps:                            40        
Time in schedule (%):                    1.00      
Time in run (%):                         89.00     
Time between steps (%):                  10.00     
----------------Mixture of Experts----------------
Expert load entropy (% of uniform):      100.00    
Lowest layer's entropy (% of uniform):   100.00    
Busiest expert's load (x mean):          1.00      
Active experts per step and layer:       1.50      
==================================================
";
        assert!(found.ends_with(expected), "{found}");
    }
}
