//! What an answer may look like: a grammar as a mask over the tokens that may come next.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use artel_engine::{LogitsMask, TokenMask};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;

/// White space between the parts of a JSON text: a space, or a new line that is indented. A model
/// must not get lost in it.
const WHITE_SPACE: &str = r"( |\n {0,16})";

/// Makes grammars for one vocabulary. What that takes is made when the first is asked for.
#[derive(Default)]
pub(crate) struct GrammarFactory(OnceLock<Result<ParserFactory, String>>);

impl fmt::Debug for GrammarFactory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GrammarFactory").finish_non_exhaustive()
    }
}

/// A compiled grammar.
#[derive(Clone)]
pub(crate) struct Grammar {
    matcher: Matcher,
    /// The token behind which the grammar begins to hold; `None` holds from the start.
    behind: Option<u32>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammar").field("behind", &self.behind).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Texts that are JSON of this schema. `field` is what an error is about.
    pub(crate) fn json(
        app: &App,
        field: &'static str,
        mut schema: Value,
    ) -> Result<Self, ApiError> {
        if let Value::Object(object) = &mut schema {
            let options = serde_json::json!({"whitespace_pattern": WHITE_SPACE});
            object.insert("x-guidance".to_owned(), options);
        }
        Self::compile(app, field, TopLevelGrammar::from_json_schema(schema))
    }

    fn compile(app: &App, field: &'static str, grammar: TopLevelGrammar) -> Result<Self, ApiError> {
        let factory = app.grammars.0.get_or_init(|| factory(app)).as_ref();
        let factory = factory.map_err(|why| {
            ApiError::field(field, format!("{field} cannot be served with this model: {why}"))
        })?;
        let refused = |why: &str| {
            // What follows the first line is the state of the parser.
            let why = why.lines().next().unwrap_or_default();
            ApiError::field(field, format!("{field} is no grammar that can be served: {why}"))
        };
        let parser = catch_unwind(AssertUnwindSafe(|| factory.create_parser(grammar)));
        let matcher = Matcher::new(parser.map_err(|_| refused("it is beyond the parser"))?);
        match matcher.get_error() {
            Some(why) => Err(refused(&why)),
            None => Ok(Self { matcher, behind: None }),
        }
    }

    /// The same for a model that thinks first: the grammar holds behind the end of that.
    pub(crate) fn behind(self, token: Option<u32>) -> Self {
        Self { behind: token, ..self }
    }

    /// The state of one answer.
    pub(crate) fn mask(&self) -> Box<dyn LogitsMask> {
        let (matcher, behind) = (self.matcher.deep_clone(), self.behind);
        Box::new(Mask { matcher, behind, seen: 0 })
    }
}

struct Mask {
    matcher: Matcher,
    behind: Option<u32>,
    /// Tokens of the answer that have been looked at.
    seen: usize,
}

impl LogitsMask for Mask {
    fn allow(&mut self, generated: &[u32], allowed: &mut TokenMask) -> Result<(), String> {
        for &token in generated.get(self.seen..).unwrap_or_default() {
            self.seen += 1;
            match self.behind {
                Some(end) if end == token => self.behind = None,
                Some(_) => {}
                None => self.matcher.consume_token(token).map_err(|why| first_line(&why))?,
            }
        }
        if self.behind.is_some() {
            allowed.allow_all();
            return Ok(());
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(|why| first_line(&why))?;
        for (word, allows) in allowed.words_mut().iter_mut().zip(mask.as_slice()) {
            *word = *allows;
        }
        Ok(())
    }
}

fn first_line(why: &impl ToString) -> String {
    let why = why.to_string();
    format!("the grammar of the answer: {}", why.lines().next().unwrap_or_default())
}

fn factory(app: &App) -> Result<ParserFactory, String> {
    let end_tokens: Vec<u32> = app.model.generation.end_tokens.clone();
    let Some(&end) = end_tokens.first() else {
        return Err("it has no token that ends an answer".to_owned());
    };
    let mut words = app.vocabulary.all()?.to_vec();
    words.resize(app.model.engine.vocabulary(), Vec::new());
    if end_tokens.iter().any(|&token| token as usize >= words.len()) {
        return Err("the token that ends an answer is not in its vocabulary".to_owned());
    }
    let info = TokRxInfo::new(words.len() as u32, end);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&end_tokens);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|why| why.to_string())?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}
