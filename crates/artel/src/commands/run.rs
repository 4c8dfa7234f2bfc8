//! `artel run`: one answer, or a chat.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use artel_engine::{
    EngineConfig, EngineHandle, Event, FinishReason, Finished, Request, SamplingParams,
};
use artel_model::{Chat, ChatTemplate, GenerationConfig, Message, ModelError, Tokenizer};
use rustyline::error::ReadlineError;

use crate::cli::RunArgs;
use crate::compute::Subject;
use crate::interrupt::Interrupt;
use crate::{compute, sampling, source};

const CHAT_HELP: &str = "Ctrl-C stops an answer, /new forgets the chat, Ctrl-D or /exit leaves.";

/// Answers `--prompt`, or what standard input holds, or chats on a terminal.
///
/// # Errors
/// When the model does not load, a setting makes no sense or the prompt does not fit the context.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let checkpoint = source::open(&args.model)?;
    let tokenizer = Tokenizer::read(&checkpoint)?;
    let config = compute::usual_steps(&args.compute, EngineConfig::default());
    let (model, compute) = (&args.model, &args.compute);
    let subject = Subject { model, compute, checkpoint: &checkpoint };
    let (_, engine) = compute::engine(subject, &tokenizer, config)?;
    let advice = GenerationConfig::read(&checkpoint)?;
    let template = find_template(args, ChatTemplate::read(&checkpoint))?;
    let mut conversation = Conversation {
        engine: engine.spawn()?,
        tokenizer: &tokenizer,
        template,
        args,
        sampling: sampling::resolve(&args.sampling, &advice),
        end_tokens: advice.end_tokens,
        interrupt,
    };
    match &args.prompt {
        Some(prompt) => conversation.answer_once(prompt),
        None if io::stdin().is_terminal() => conversation.chat(),
        None => {
            let mut prompt = String::new();
            io::stdin().read_to_string(&mut prompt).context("cannot read standard input")?;
            ensure!(!prompt.trim().is_empty(), "the prompt is empty: give --prompt TEXT");
            conversation.answer_once(prompt.trim_end_matches('\n'))
        }
    }
}

/// A checkpoint without a template is continued as it is, unless a flag needs the template.
fn find_template(
    args: &RunArgs,
    template: Result<ChatTemplate, ModelError>,
) -> anyhow::Result<Option<ChatTemplate>> {
    match template {
        _ if args.raw && args.system.is_some() => {
            bail!("--system needs the chat template, which --raw leaves out")
        }
        _ if args.raw => Ok(None),
        Err(error @ ModelError::NoChatTemplate { .. }) if args.system.is_none() => {
            tracing::info!("{error}; the prompt is continued as it is");
            Ok(None)
        }
        template => Ok(Some(template?)),
    }
}

/// A model, how it is asked, and whether the user has had enough.
struct Conversation<'m> {
    engine: EngineHandle,
    tokenizer: &'m Tokenizer,
    template: Option<ChatTemplate>,
    args: &'m RunArgs,
    sampling: SamplingParams,
    end_tokens: Vec<u32>,
    interrupt: Interrupt,
}

impl Conversation<'_> {
    fn answer_once(&mut self, prompt: &str) -> anyhow::Result<ExitCode> {
        let mut messages = self.opening();
        messages.push(Message::new("user", prompt));
        let (_, finished) = self.answer(&messages)?;
        Ok(match finished.reason {
            FinishReason::Cancelled => ExitCode::from(crate::interrupt::EXIT_INTERRUPTED as u8),
            _ => ExitCode::SUCCESS,
        })
    }

    /// Reads a line, answers, and begins again.
    fn chat(&mut self) -> anyhow::Result<ExitCode> {
        eprintln!("{CHAT_HELP}");
        let mut editor = rustyline::DefaultEditor::new().context("cannot read the terminal")?;
        let mut messages = self.opening();
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
                Err(error) => return Err(error).context("cannot read the terminal"),
            };
            match line.trim() {
                "" => continue,
                "/exit" => break,
                "/new" => messages = self.opening(),
                "/help" => eprintln!("{CHAT_HELP}"),
                text => {
                    editor.add_history_entry(text).context("cannot remember the line")?;
                    messages.push(Message::new("user", text));
                    match self.answer(&messages) {
                        Ok((answer, _)) => messages.push(Message::new("assistant", &answer)),
                        Err(error) => {
                            messages.pop();
                            eprintln!("artel: {error:#}");
                        }
                    }
                    self.interrupt.take();
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What a chat begins with.
    fn opening(&self) -> Vec<Message> {
        self.args.system.iter().map(|text| Message::new("system", text)).collect()
    }

    /// Streams the answer to standard output, tells on standard error how fast it was.
    fn answer(&mut self, messages: &[Message]) -> anyhow::Result<(String, Finished)> {
        let request = self.request(messages)?;
        let mut events = self.engine.submit(request)?;
        let mut out = io::stdout().lock();
        let mut answer = String::new();
        loop {
            let (text, finished) = match events.blocking_recv().context("the engine is gone")? {
                Event::PromptLogprobs(_) => continue,
                Event::Token(token) => (token.text, None),
                Event::Finished(finished) => (finished.text.clone(), Some(finished)),
            };
            out.write_all(text.as_bytes())?;
            out.flush()?;
            answer.push_str(&text);
            if let Some(finished) = finished {
                writeln!(out)?;
                report(&finished)?;
                return Ok((answer, finished));
            }
        }
    }

    fn request(&self, messages: &[Message]) -> anyhow::Result<Request> {
        let prompt_ids = match &self.template {
            Some(template) => {
                let text = template.render(&Chat::new(messages))?;
                self.tokenizer.encode_verbatim(&text)?
            }
            None => {
                let text = messages.last().and_then(|message| message.content.as_str());
                self.tokenizer.encode(text.unwrap_or_default())?
            }
        };
        let flags = &self.args.sampling;
        Ok(Request {
            max_tokens: flags.max_tokens,
            sampling: self.sampling,
            stop_strings: flags.stop.clone(),
            end_tokens: self.end_tokens.clone(),
            ignore_eos: flags.ignore_eos,
            cancellation: self.interrupt.cancellation(),
            ..Request::new(prompt_ids)
        })
    }
}

/// Why the answer ended, if not by itself, and the speed.
fn report(finished: &Finished) -> anyhow::Result<()> {
    let Finished { reason, usage, timings, .. } = finished;
    let ended = match reason {
        FinishReason::Stop(_) => "",
        FinishReason::Length => ", cut off at the token limit",
        FinishReason::Cancelled => ", interrupted",
        FinishReason::ShutDown => ", cut off with the engine",
        FinishReason::Failed(why) => bail!("{why}"),
    };
    eprintln!(
        "[{} tokens at {:.0} tokens/s; prompt {} tokens at {:.0} tokens/s{ended}]",
        usage.completion_tokens,
        timings.decode_tokens_per_second(usage),
        usage.prompt_tokens,
        timings.prefill_tokens_per_second(usage),
    );
    Ok(())
}
