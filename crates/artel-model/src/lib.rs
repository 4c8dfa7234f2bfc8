//! Checkpoints, tokenizers, chat templates and one short file per architecture.
