//! Times of another implementation, to print beside ours.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Another implementation on the same GPU and sizes.
#[derive(Debug, Clone, Deserialize)]
pub struct Peer {
    /// Its name and version.
    pub name: String,
    rows: Vec<PeerRow>,
}

#[derive(Debug, Clone, Deserialize)]
struct PeerRow {
    shape: String,
    tokens: usize,
    microseconds: f64,
    #[serde(default = "uniform")]
    routing: String,
}

fn uniform() -> String {
    "uniform".to_owned()
}

impl Peer {
    /// Reads `{name, rows: [{shape, tokens, microseconds, routing}]}`; routing is uniform unless it
    /// is given.
    ///
    /// # Errors
    /// When the file cannot be read or has another form.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| {
            let expected = "{name, rows: [{shape, tokens, microseconds, routing}]}";
            format!("{} is not a comparison; expected {expected}", path.display())
        })
    }

    /// Its time for one row of the table.
    pub fn microseconds(&self, shape: &str, routing: &str, tokens: usize) -> Option<f64> {
        let same =
            |row: &&PeerRow| row.shape == shape && row.routing == routing && row.tokens == tokens;
        self.rows.iter().find(same).map(|row| row.microseconds)
    }

    /// All its times for one shape and routing, by batch size.
    pub fn series(&self, shape: &str, routing: &str) -> BTreeMap<usize, f64> {
        let rows = self.rows.iter().filter(|row| row.shape == shape && row.routing == routing);
        rows.map(|row| (row.tokens, row.microseconds)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_shape_routing_and_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.json");
        let text = r#"{"name": "other 1.0", "rows": [
            {"shape": "a", "tokens": 8, "microseconds": 2.5},
            {"shape": "a", "tokens": 8, "microseconds": 3.5, "routing": "zipf-1.0"}]}"#;
        std::fs::write(&path, text).unwrap();
        let peer = Peer::load(&path).unwrap();
        assert_eq!(peer.microseconds("a", "uniform", 8), Some(2.5));
        assert_eq!(peer.microseconds("a", "zipf-1.0", 8), Some(3.5));
        assert_eq!(peer.microseconds("a", "uniform", 9), None);
        assert_eq!(peer.series("a", "uniform").len(), 1);
        std::fs::write(&path, "{}").unwrap();
        assert!(format!("{:#}", Peer::load(&path).unwrap_err()).contains("not a comparison"));
    }
}
