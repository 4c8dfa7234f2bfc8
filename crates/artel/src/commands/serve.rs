//! `artel serve`: the model over HTTP.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use artel_engine::{EngineConfig, EngineHandle};
use artel_model::{
    BLOCK_TOKENS, ChatTemplate, Checkpoint, GenerationConfig, ModelError, Tokenizer,
};
use artel_server::{ServedModel, Server, ServerConfig};
use tokio::sync::Notify;

use crate::cli::{ServeArgs, VERSION};
use crate::compute::Subject;
use crate::interrupt::Interrupt;
use crate::{compute, source};

/// Files that are open at the same time at most; each connection is one.
const OPEN_FILES: u64 = 65_536;

/// Serves until it is interrupted.
///
/// # Errors
/// When the model does not load, a setting makes no sense or the address cannot be had.
pub fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let stopped = Arc::new(Notify::new());
    let notified = Arc::clone(&stopped);
    Interrupt::listen_and(move || notified.notify_one())?;
    if let Err(why) = rlimit::increase_nofile_limit(OPEN_FILES) {
        tracing::warn!("the limit of open files stays: {why}");
    }
    let checkpoint = source::open(&args.model)?;
    let tokenizer = Tokenizer::read(&checkpoint)?;
    let (model, compute) = (&args.model, &args.compute);
    let subject = Subject { model, compute, checkpoint: &checkpoint };
    let (model, engine) = compute::engine(subject, &tokenizer, engine_config(args))?;
    let engine = engine.spawn()?;
    tell(&engine);
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
        tracing::info!("ready after {:.1} s", started.elapsed().as_secs_f64());
        server.run(stopped.notified(), args.shutdown_grace).await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// One line a decision, beside those of the model, which have been told.
fn tell(engine: &EngineHandle) {
    let EngineConfig { max_num_seqs, max_num_batched_tokens, max_model_len, .. } = engine.config();
    tracing::info!(
        "cache: keys and values of {} tokens",
        engine.metrics().kv_blocks_total * BLOCK_TOKENS
    );
    tracing::info!(
        "batch: {max_num_seqs} requests, {max_num_batched_tokens} tokens a step, {max_model_len} \
         tokens a request, {} may wait",
        engine.config().max_waiting
    );
}

fn engine_config(args: &ServeArgs) -> EngineConfig {
    let usual = EngineConfig::default();
    let (compute, args) = (&args.compute, &args.engine);
    let max_num_seqs = args.max_num_seqs.unwrap_or(usual.max_num_seqs);
    let usual = compute::usual_steps(compute, EngineConfig { max_num_seqs, ..usual });
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(usual.max_num_batched_tokens),
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
