//! `artel serve`: the model over HTTP.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use artel_engine::EngineConfig;
use artel_model::{ChatTemplate, Checkpoint, GenerationConfig, Model, ModelError, Tokenizer};
use artel_server::{ServedModel, Server, ServerConfig};
use indicatif::HumanBytes;
use tokio::sync::Notify;

use crate::cli::{EngineArgs, ServeArgs, VERSION};
use crate::interrupt::Interrupt;
use crate::{ranks, source};

/// Files that are open at the same time at most; each connection is one.
const OPEN_FILES: u64 = 65_536;

/// Serves until it is interrupted.
///
/// # Errors
/// When the model does not load, a setting makes no sense or the address cannot be had.
pub fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let stopped = Arc::new(Notify::new());
    let notified = Arc::clone(&stopped);
    Interrupt::listen_and(move || notified.notify_one())?;
    if let Err(why) = rlimit::increase_nofile_limit(OPEN_FILES) {
        tracing::warn!("the limit of open files stays: {why}");
    }
    let checkpoint = source::open(&args.model)?;
    let model = source::load(&args.model, &checkpoint)?;
    let (model, runner) = ranks::runner(&args.ranks, model, &checkpoint.name())?;
    let tokenizer = Tokenizer::read(&checkpoint)?;
    let engine = source::start(runner, &tokenizer, engine_config(&args.engine))?;
    tell(&model, engine.config());
    let served = ServedModel {
        engine,
        tokenizer,
        template: template(&checkpoint)?,
        generation: GenerationConfig::read(&checkpoint)?,
        expert_layers: model.expert_layers(),
        root: checkpoint.name(),
        version: VERSION,
    };
    let config = server_config(args, &checkpoint);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = match args.host.contains(':') {
            true => format!("[{}]:{}", args.host, args.port),
            false => format!("{}:{}", args.host, args.port),
        };
        let names = config.names.join(", ");
        let needs_key = if config.api_keys.is_empty() { "no key needed" } else { "key needed" };
        let server = Server::bind(&address, config, served).await?;
        tracing::info!("serving {names} and default at http://{}, {needs_key}", server.address());
        tracing::info!("ready");
        server.run(stopped.notified(), args.shutdown_grace).await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// One line a decision, beside those of the model, which have been told.
fn tell(model: &Model, engine: &EngineConfig) {
    tracing::info!("device: CPU, {} threads", rayon::current_num_threads());
    let EngineConfig { max_num_seqs, max_num_batched_tokens, max_model_len, .. } = engine;
    let usual = max_num_seqs.saturating_mul(*max_model_len);
    let cache = usual.saturating_mul(model.config().cache_bytes_per_token) as u64;
    let cache = engine.kv_cache_memory.map_or(cache, |bytes| bytes as u64);
    tracing::info!("memory: up to {} for keys and values, taken as they fill", HumanBytes(cache));
    tracing::info!(
        "batch: {max_num_seqs} requests, {max_num_batched_tokens} tokens a step, {max_model_len} \
         tokens a request, {} may wait",
        engine.max_waiting
    );
}

fn engine_config(args: &EngineArgs) -> EngineConfig {
    let usual = EngineConfig::default();
    let max_num_seqs = args.max_num_seqs.unwrap_or(usual.max_num_seqs);
    let tokens = usual.max_num_batched_tokens.max(max_num_seqs);
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(tokens),
        max_model_len: args.max_model_len.unwrap_or(usual.max_model_len),
        kv_cache_memory: args.kv_cache_memory,
        max_waiting: args.max_waiting.unwrap_or(usual.max_waiting),
        prefix_caching: !args.no_prefix_caching,
    }
}

fn server_config(args: &ServeArgs, checkpoint: &Checkpoint) -> ServerConfig {
    let folder = args.model.model.as_ref().and_then(|folder| folder.canonicalize().ok());
    let folder = folder.as_ref().and_then(|folder| folder.file_name());
    let own = folder.map_or_else(|| checkpoint.name(), |name| name.to_string_lossy().into_owned());
    let given = &args.served_model_name;
    ServerConfig {
        names: if given.is_empty() { vec![own] } else { given.clone() },
        api_keys: args.api_key.iter().filter(|key| !key.is_empty()).cloned().collect(),
        cors_origins: args.cors_origin.clone(),
        body_bytes_max: args.max_body_size,
        metrics_prefix: args.metrics_prefix.clone(),
        log_requests: args.log_requests,
        ..ServerConfig::default()
    }
}

fn template(checkpoint: &Checkpoint) -> anyhow::Result<Option<ChatTemplate>> {
    match ChatTemplate::read(checkpoint) {
        Ok(template) => Ok(Some(template)),
        Err(error @ ModelError::NoChatTemplate { .. }) => {
            tracing::warn!("{error}; chats are refused");
            Ok(None)
        }
        Err(error) => Err(error).context("the chat template does not load"),
    }
}
