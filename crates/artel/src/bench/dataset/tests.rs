use std::path::Path;

use artel_model::Checkpoint;

use super::*;

fn texts() -> Texts {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tally");
    Texts::read(&Checkpoint::open_texts(&folder).unwrap()).unwrap()
}

fn dataset(source: Source, count: usize) -> Dataset {
    Dataset { source, count, warmups: 0, seed: 1, in_order: true, no_oversample: true }
}

fn random(shape: Shape, count: usize) -> Dataset {
    dataset(Source::Random(shape), count)
}

const SHAPE: Shape =
    Shape { input: 40, output: 8, range_ratio: 0.0, prefix: 0, tokens: Tokens::Drawn };

#[test]
fn random_prompts_have_the_tokens_asked_for_and_differ() {
    let texts = texts();
    let prompts = load(&random(SHAPE, 50), Some(&texts)).unwrap();
    assert_eq!(prompts.distinct(), 50);
    let exact = prompts.measured.iter().filter(|prompt| prompt.tokens == 40).count();
    assert!(exact >= 45, "{exact} of 50 have 40 tokens");
    for prompt in &prompts.measured {
        assert_eq!(texts.tokenizer.encode(&prompt.text).unwrap().len(), prompt.tokens);
        assert_eq!(prompt.output_tokens, 8);
    }
}

#[test]
fn runs_are_neighbours_in_the_vocabulary() {
    let texts = texts();
    let shape = Shape { input: 400, tokens: Tokens::Runs, ..SHAPE };
    let prompts = load(&random(shape, 3), Some(&texts)).unwrap();
    let ids = texts.tokenizer.text_ids();
    for prompt in prompts.measured {
        let tokens = texts.tokenizer.encode_verbatim(&prompt.text).unwrap();
        let place = |token| ids.iter().position(|id| *id == token).unwrap();
        let next = |pair: &&[u32]| place(pair[1]) == (place(pair[0]) + 1) % ids.len();
        let neighbours = tokens.windows(2).filter(next).count();
        // Some tokens merge with their neighbour when the text is encoded.
        assert!(neighbours > 100, "{neighbours} of 399 pairs are neighbours");
    }
}

#[test]
fn lengths_stay_in_their_range_and_use_it() {
    let shape = Shape { range_ratio: 0.5, ..SHAPE };
    let prompts = load(&random(shape, 200), Some(&texts())).unwrap().measured;
    let outputs: Vec<usize> = prompts.iter().map(|prompt| prompt.output_tokens).collect();
    assert_eq!((outputs.iter().min(), outputs.iter().max()), (Some(&4), Some(&12)));
    assert!(prompts.iter().all(|prompt| (18..=62).contains(&prompt.tokens)));
}

#[test]
fn all_prompts_begin_with_the_prefix() {
    let shape = Shape { prefix: 30, ..SHAPE };
    let prompts = load(&random(shape, 5), Some(&texts())).unwrap();
    let start: String = prompts.measured[0].text.chars().take(20).collect();
    assert!(prompts.measured.iter().all(|prompt| prompt.text.starts_with(&start)));
    assert_eq!(prompts.distinct(), 5);
}

#[test]
fn the_seed_decides_and_warm_ups_change_nothing() {
    let texts = texts();
    let prompts =
        |seed, warmups| load(&Dataset { seed, warmups, ..random(SHAPE, 5) }, Some(&texts)).unwrap();
    assert_eq!(prompts(1, 0).measured, prompts(1, 3).measured);
    assert_ne!(prompts(1, 0).measured, prompts(2, 0).measured);
    let warm = prompts(1, 3);
    assert!(warm.warmups.len() == 3 && !warm.measured.contains(&warm.warmups[0]));
}

#[test]
fn impossible_lengths_are_refused() {
    let texts = texts();
    let refused = |shape| load(&random(shape, 1), Some(&texts)).unwrap_err().to_string();
    assert!(refused(Shape { input: 0, ..SHAPE }).contains("too small"));
    assert!(refused(Shape { range_ratio: 1.0, ..SHAPE }).contains("[0, 1)"));
    assert!(load(&random(SHAPE, 1), None).unwrap_err().to_string().contains("tokenizer"));
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn conversations_give_prompts_and_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let turn = |text: &str| format!("{{\"from\": \"human\", \"value\": \"{text}\"}}");
    let (good, answer) = (turn("How many hens are there now?"), turn("There are 14 hens left."));
    let long = turn(&"hens ".repeat(3000));
    let entries = format!(
        "[{{\"conversations\": [{good}, {answer}]}}, {{\"conversations\": [{good}]}}, {{}},
          {{\"conversations\": [{}, {answer}]}}, {{\"conversations\": [{long}, {answer}]}}]",
        turn("a")
    );
    let path = file(&folder, "share.json", &entries);
    let texts = texts();
    let sharegpt = |output_tokens| Source::Sharegpt { path: path.clone(), output_tokens };
    let prompts = load(&dataset(sharegpt(None), 5), Some(&texts)).unwrap().measured;
    assert_eq!(prompts.len(), 1);
    assert_eq!(prompts[0].text, "How many hens are there now?");
    let answer = texts.tokenizer.encode("There are 14 hens left.").unwrap();
    assert_eq!(prompts[0].output_tokens, answer.len());
    let filled = Dataset { no_oversample: false, ..dataset(sharegpt(Some(3)), 5) };
    let prompts = load(&filled, Some(&texts)).unwrap();
    assert_eq!((prompts.measured.len(), prompts.distinct()), (5, 1));
    assert_eq!(prompts.measured[4].output_tokens, 3);
}

#[test]
fn custom_lines_may_bring_their_lengths_and_take_the_template() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"prompt\": \"one\", \"output_tokens\": 5}\n\n{\"prompt\": \"two\", \"output_tokens\": 6}\n";
    let path = file(&folder, "lines.jsonl", lines);
    let custom =
        |output_tokens, templated| Source::Custom { path: path.clone(), output_tokens, templated };
    let texts = texts();
    let prompts = load(&dataset(custom(None, false), 2), Some(&texts)).unwrap().measured;
    let found: Vec<_> =
        prompts.iter().map(|prompt| (&*prompt.text, prompt.output_tokens)).collect();
    assert_eq!(found, [("one", 5), ("two", 6)]);
    let plain = load(&dataset(custom(Some(9), true), 2), None).unwrap().measured;
    assert_eq!((plain[0].tokens, plain[0].output_tokens), (0, 9));
    let templated = load(&dataset(custom(Some(9), true), 2), Some(&texts)).unwrap().measured;
    assert_eq!(templated[0].text != "one", texts.template.is_some());
    assert!(templated[0].text.contains("one"));
}

#[test]
fn files_that_are_wrong_are_named_with_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts();
    let refused = |source| format!("{:#}", load(&dataset(source, 1), Some(&texts)).unwrap_err());
    let custom = |path, output_tokens| Source::Custom { path, output_tokens, templated: false };
    let missing = refused(custom(folder.path().join("nowhere.jsonl"), Some(1)));
    assert!(missing.contains("cannot read the data set") && missing.contains("nowhere.jsonl"));
    let lines = file(&folder, "a.jsonl", "{\"prompt\": \"one\"}\n\n{\"prompt\": \n");
    assert!(refused(custom(lines.clone(), Some(1))).contains("a.jsonl, line 3: not JSON"));
    assert!(refused(custom(lines, None)).contains("a.jsonl, line 1: no \"output_tokens\""));
    let lines = file(&folder, "b.jsonl", "{\"text\": \"one\"}\n");
    assert!(refused(custom(lines, Some(1))).contains("b.jsonl, line 1: no \"prompt\""));
    let empty = file(&folder, "c.jsonl", "\n");
    assert!(refused(custom(empty, Some(1))).contains("no usable prompt"));
    let sharegpt = |path| Source::Sharegpt { path, output_tokens: None };
    let broken = file(&folder, "d.json", "[{},\n,]");
    let error = refused(sharegpt(broken));
    assert!(error.contains("d.json is not JSON") && error.contains("line 2"), "{error}");
    assert!(refused(sharegpt(file(&folder, "e.json", "{}"))).contains("not a JSON array"));
}
