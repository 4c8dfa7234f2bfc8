use std::fs;

use super::answer::INVALID;
use super::python_random::PythonRandom;
use super::*;

fn problem(question: &str, answer: &str) -> Problem {
    Problem { question: question.to_owned(), answer: answer.to_owned() }
}

fn dataset(train: usize) -> Dataset {
    let numbered = |name: &'static str, count: usize| -> Vec<Problem> {
        let solution = |i: usize| format!("It is {i}.\n#### {i}");
        (0..count).map(|i| problem(&format!("{name} {i}?"), &solution(i))).collect()
    };
    Dataset { train: numbered("train", train), test: numbered("test", 3) }
}

#[test]
fn strict_match_wants_the_marker() {
    // What Python's re.findall gives for the harness's pattern, first match.
    for (text, expected) in [
        ("so it is 7\n#### 7", "7"),
        ("#### -7,5.\n#### 8", "-7,5."),
        ("#### x #### 9", "9"),
        ("#### .", "."),
        ("####7", INVALID),
        ("#### -", INVALID),
        ("#### $5", INVALID),
        ("", INVALID),
    ] {
        assert_eq!(strict_match(text), expected, "{text:?}");
    }
}

#[test]
fn flexible_extract_takes_the_last_number() {
    // What Python's re.findall gives for the harness's pattern, last match.
    for (text, expected) in [
        ("a $1,234.50. b", "$1,234.50."),
        ("7", "7"),
        ("-7", "-7"),
        ("--12", "-12"),
        ("- 5", "5"),
        ("3 - 4,", "4,"),
        ("... ok", "..."),
        ("5 .. ok", ".."),
        ("5 . ok", "5"),
        ("-$5", "-$5"),
        ("é9é", "9"),
        ("cost 1-2", "-2"),
        ("-,", INVALID),
        ("$", INVALID),
        ("x-", INVALID),
        ("", INVALID),
    ] {
        assert_eq!(flexible_extract(text), expected, "{text:?}");
    }
}

#[test]
fn answers_are_compared_without_their_dress() {
    for (answer, expected) in [
        ("$1,234.", "1234"),
        ("12 x\n3 #### 4 #### 5.", "5"),
        ("12.50", "12.50"),
        ("1..", "1."),
        (INVALID, "[invalid]"),
    ] {
        assert_eq!(normalize(answer), expected);
    }
}

#[test]
fn outcomes_and_their_standard_error() {
    let solution = problem("How much?", "She pays 1,000+200 = <<1000+200=1200>>1,200.\n#### 1,200");
    let outcome = |completion: &str| Outcome::of(&solution, completion);
    assert_eq!(outcome(" 1200.\n#### 1200"), Outcome { strict: true, flexible: true });
    assert_eq!(outcome(" It is $1,200."), Outcome { strict: false, flexible: true });
    assert_eq!(outcome("#### 1,200\nOr 7"), Outcome { strict: true, flexible: false });
    assert_eq!(outcome(""), Outcome { strict: false, flexible: false });

    let mut report = Report::default();
    assert_eq!(report.strict_match(), (0.0, 0.0));
    for right in [true, true, true, false] {
        report.add(Outcome { strict: right, flexible: false });
    }
    let (mean, error) = report.strict_match();
    assert!(mean == 0.75 && (error - 0.25).abs() < 1e-12, "{mean} {error}");
    assert_eq!(report.flexible_extract(), (0.0, 0.0));
}

#[test]
fn a_prompt_is_examples_and_a_question() {
    let prompts = prompts(&dataset(4), Shots::First, 2, 10).unwrap();
    assert_eq!(prompts.len(), 3);
    assert_eq!(
        prompts[1],
        "Question: train 0?\nAnswer: It is 0.\n#### 0\n\n\
         Question: train 1?\nAnswer: It is 1.\n#### 1\n\n\
         Question: test 1?\nAnswer:"
    );
}

#[test]
fn examples_are_drawn_as_python_draws_them() {
    let prompts = prompts(&dataset(7473), Shots::HARNESS, 5, 2).unwrap();
    // random.Random(1234).sample(range(7473), 5), twice.
    for (prompt, drawn) in
        prompts.iter().zip([[6374, 3610, 957, 61, 742], [7462, 6610, 4769, 286, 5501]])
    {
        let shown: Vec<&str> = prompt.lines().filter(|line| line.contains("train")).collect();
        assert_eq!(shown, drawn.map(|index| format!("Question: train {index}?")));
    }
}

#[test]
fn pythons_generator_word_for_word() {
    let mut random = PythonRandom::new(1234);
    assert_eq!([0; 3].map(|_| random.next_u32()), [4_150_886_329, 3_342_196_574, 1_892_932_127]);
    let mut random = PythonRandom::new((1 << 40) + 5);
    assert_eq!([0; 3].map(|_| random.next_u32()), [2_166_296_868, 2_220_160_828, 1_153_647_273]);
    assert_eq!(random.sample(10, 5), [0, 8, 9, 1, 7]);
    assert_eq!(random.sample(5, 5), [1, 4, 2, 0, 3]);
    assert_eq!(random.sample(21, 5), [20, 12, 3, 17, 7]);
    assert_eq!(random.sample(22, 5), [14, 1, 3, 13, 10]);
}

#[test]
fn pythons_samples_of_many() {
    let mut random = PythonRandom::new(3);
    let many = random.sample(200, 30);
    assert_eq!(many[..6], [60, 151, 139, 33, 94, 154]);
    assert_eq!(many[24..], [184, 162, 176, 133, 99, 188]);
    assert_eq!(random.sample(80, 30)[..6], [8, 20, 75, 5, 38, 3]);
    assert_eq!(random.sample(85, 21)[..6], [44, 68, 74, 52, 82, 29]);
    assert_eq!(random.sample(86, 21)[..6], [11, 44, 8, 52, 19, 2]);
    assert!(random.sample(5, 0).is_empty());
}

#[test]
fn files_are_read_and_faults_are_placed() {
    let folder = tempfile::tempdir().unwrap();
    let line = r##"{"question": "q?", "answer": "a\n#### 1"}"##;
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("train.jsonl", &format!("{line}\n{line}\n"));
    let missing = Dataset::load(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("test.jsonl"), "{missing}");

    write("test.jsonl", &format!("{line}\n\n{line}\n"));
    let dataset = Dataset::load(folder.path()).unwrap();
    assert_eq!((dataset.train.len(), dataset.test.len()), (2, 2));
    assert_eq!(dataset.test[1], problem("q?", "a\n#### 1"));
    assert!(prompts(&dataset, Shots::First, SHOTS, 1).unwrap_err().to_string().contains("5"));

    write("test.jsonl", &format!("{line}\n{{\"question\": 3}}\n"));
    let broken = Dataset::load(folder.path()).unwrap_err().to_string();
    assert!(broken.contains("test.jsonl, line 2"), "{broken}");
    write("test.jsonl", r#"{"question": "q?", "answer": "42"}"#);
    let unmarked = Dataset::load(folder.path()).unwrap_err().to_string();
    assert!(unmarked.contains("line 1") && unmarked.contains("####"), "{unmarked}");
}
