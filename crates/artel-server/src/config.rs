use std::time::Duration;

/// How the server behaves towards its clients.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Names that the model answers to, the first of which it calls itself; `default` is always one
    /// more.
    pub names: Vec<String>,
    /// Keys of which a client has to show one; none means that everybody may ask.
    pub api_keys: Vec<String>,
    /// Web pages of these origins may ask (`*`: all); by default only the server's own.
    pub cors_origins: Vec<String>,
    /// Largest request body in bytes.
    pub body_bytes_max: usize,
    /// Time a client has for the head of a request, and again for its body.
    pub read_timeout: Duration,
    /// Time for which a client may leave what was sent to it unread.
    pub write_timeout: Duration,
    /// Connections at a time; more wait in the system's queue.
    pub connections_max: usize,
    /// What comes before the colon in names of metrics that mean what they mean in vLLM.
    pub metrics_prefix: String,
    /// Whether each request is logged.
    pub log_requests: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            names: vec!["default".to_owned()],
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            body_bytes_max: 16 << 20,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            connections_max: 16_384,
            metrics_prefix: "artel".to_owned(),
            log_requests: false,
        }
    }
}

impl ServerConfig {
    /// What the model calls itself.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("default", String::as_str)
    }

    /// Whether a request for `name` means the model.
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        name == "default" || self.names.iter().any(|own| own == name)
    }
}
