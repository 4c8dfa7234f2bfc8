//! What is told of ranks that hold the experts.

use artel_engine::{Metrics, RankMetrics};
use prometheus::proto::MetricType;

use super::{Page, Sample};

impl Page<'_> {
    pub(super) fn ranks(&mut self, now: &Metrics) {
        let Some(ranks) = &now.ranks else { return };
        self.rank_loads(ranks, &now.experts.recent);
        let lost = [(&[][..], ranks.lost_ranks as f64)];
        self.own("lost_ranks_total", "Ranks that were given up.", MetricType::COUNTER, &lost);
        if ranks.is_balanced {
            self.balancing(ranks);
        }
    }

    /// Load of ranks, as the present placement would have shared what was there recently.
    fn rank_loads(&mut self, ranks: &RankMetrics, recent: &[Vec<u64>]) {
        let loads = ranks.rank_loads(recent);
        let mut tokens = Vec::new();
        for (layer, loads) in loads.iter().enumerate() {
            let layer = self.layer(layer);
            for (rank, load) in loads.iter().enumerate() {
                tokens.push((layer.clone(), rank.to_string(), *load));
            }
        }
        let labels: Vec<_> = tokens
            .iter()
            .map(|(layer, rank, load)| ([("layer", &layer[..]), ("rank", &rank[..])], *load))
            .collect();
        let samples: Vec<Sample<'_>> = labels.iter().map(|(label, n)| (&label[..], *n)).collect();
        let help = "Pairs of each rank, in the latest 256 to 512 steps by the present placement.";
        self.own("rank_load", help, MetricType::GAUGE, &samples);
        let imbalances = ranks.imbalances(recent).into_iter().enumerate();
        let imbalances: Vec<(String, f64)> =
            imbalances.map(|(layer, value)| (self.layer(layer), value)).collect();
        let labels: Vec<_> =
            imbalances.iter().map(|(layer, value)| ([("layer", &layer[..])], *value)).collect();
        let samples: Vec<Sample<'_>> = labels.iter().map(|(label, n)| (&label[..], *n)).collect();
        let help = "Load of the busiest rank over the mean, likewise.";
        self.own("rank_load_imbalance", help, MetricType::GAUGE, &samples);
    }

    fn balancing(&mut self, ranks: &RankMetrics) {
        for (name, help, count) in [
            ("eplb_rebalances_total", "Times that experts were placed anew.", ranks.rebalances),
            ("eplb_moves_total", "Layers that got their new placement.", ranks.moves),
            ("eplb_failed_moves_total", "Layers that kept the old one.", ranks.failed_moves),
            ("eplb_moved_slots_total", "Slots that got another expert.", ranks.moved_slots),
            ("eplb_moved_bytes_total", "Bytes that went between ranks.", ranks.moved_bytes),
        ] {
            self.own(name, help, MetricType::COUNTER, &[(&[], count as f64)]);
        }
        let seconds = [(&[][..], ranks.move_time.as_secs_f64())];
        let help = "Time of all moves, from their begin to their switch.";
        self.own("eplb_move_seconds_total", help, MetricType::COUNTER, &seconds);
        for (name, help, value) in [
            ("eplb_layers_to_move", "Layers whose experts have yet to move.", ranks.layers_to_move),
            (
                "eplb_steps_since_rebalance",
                "Steps since experts were placed anew; begins at three quarters of the interval.",
                ranks.steps_since_rebalance,
            ),
        ] {
            self.own(name, help, MetricType::GAUGE, &[(&[], value as f64)]);
        }
        if let Some(step) = &ranks.balancedness {
            let help = "Mean over maximum of the ranks' tokens in the latest step that was logged.";
            let value = [(&[][..], step.balancedness)];
            self.own("eplb_balancedness", help, MetricType::GAUGE, &value);
        }
    }
}
