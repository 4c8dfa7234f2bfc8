//! `artel logits`: float32 logits of a sequence, for people who compare engines.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, ensure};
use artel_model::{KvCache, LogitsOf, SequenceInput, Tokenizer};

use crate::cli::LogitsArgs;
use crate::{npy, source};

/// Computes and writes the logits.
///
/// # Errors
/// When the model does not load, an id is outside its vocabulary, or the file cannot be written.
pub fn logits(args: &LogitsArgs) -> anyhow::Result<()> {
    let checkpoint = source::open(&args.model)?;
    let model = source::load(&args.model, &checkpoint)?;
    let ids = match &args.text {
        Some(text) => Tokenizer::read(&checkpoint)?.encode(text)?,
        None => args.ids.clone(),
    };
    ensure!(!ids.is_empty(), "there are no token ids: give --ids 1,2,3 or a --text");
    let mut cache = model.new_cache(KvCache::blocks_for(ids.len()));
    let mut workspace = model.new_workspace();
    let blocks = cache.all_blocks();
    let logits_of = LogitsOf::AllTokens;
    let input = SequenceInput { blocks: &blocks, cached: 0, tokens: &ids, logits_of };
    let logits = model.forward(&mut workspace, &mut cache, &[input])?; // [T, V]
    let columns = model.config().vocabulary;

    let describe = || format!("cannot write {}", args.output.display());
    let mut file = BufWriter::new(File::create(&args.output).with_context(describe)?);
    npy::write_matrix(&mut file, logits, columns).with_context(describe)?;
    file.flush().with_context(describe)?;
    eprintln!("wrote {}: float32 [{}, {columns}]", args.output.display(), ids.len());
    Ok(())
}
