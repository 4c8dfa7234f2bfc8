use super::dice::Dice;
use super::{Problem, Split, extract_answer, families, problem, stable_hash, write_jsonl};
use std::collections::{BTreeSet, HashSet};

const SEED: u64 = 20;
const COUNT: u64 = 3000;

fn samples(split: Split) -> Vec<Problem> {
    (0..COUNT).map(|index| problem(split, SEED, index)).collect()
}

/// The `a op b` and the `c` of every `<<a op b=c>>`.
fn annotations(solution: &str) -> Vec<(&str, i64)> {
    let inner = solution.split("<<").skip(1).map(|rest| rest.split_once(">>").unwrap().0);
    inner
        .map(|equation| {
            let (expression, result) = equation.split_once('=').unwrap();
            (expression, result.parse().unwrap())
        })
        .collect()
}

/// Works an expression out in units of a hundredth, independently of the generator.
fn hundredths(expression: &str) -> i64 {
    let at = expression.find(['+', '-', '*', '/']).unwrap();
    let number = |text: &str| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let fraction = format!("{fraction:0<2}");
        whole.parse::<i64>().unwrap() * 100 + fraction.parse::<i64>().unwrap()
    };
    let (a, b) = (number(&expression[..at]), number(&expression[at + 1..]));
    match &expression[at..=at] {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b / 100,
        _ => {
            assert_eq!(a * 100 % b, 0, "{expression} has no exact result");
            a * 100 / b
        }
    }
}

#[test]
fn every_annotation_is_right_and_the_last_is_the_answer() {
    for Problem { question, solution, answer, steps } in samples(Split::Training) {
        let found = annotations(&solution);
        assert_eq!(found.len(), steps as usize, "{solution}");
        assert!((2..=4).contains(&steps), "{question}");
        for (expression, result) in &found {
            assert_eq!(hundredths(expression), result * 100, "{solution}");
            assert!((2..10_000).contains(result), "{solution}");
            assert!(solution.contains(&format!(">>{result}")), "{solution}");
        }
        assert_eq!(found.last().unwrap().1, answer, "{solution}");
        assert_eq!(extract_answer(&solution), Some(answer), "{solution}");
        assert_eq!(solution.lines().count(), steps as usize + 1);
    }
}

/// Halves to fifths and tenths, "twice", legs and wheels, dozens, minutes of an hour.
const KNOWN_TO_ALL: [i64; 9] = [2, 3, 4, 5, 6, 8, 10, 12, 60];

/// Quantities of one line come from the question, from an earlier line, or are a known constant.
#[test]
fn no_operand_comes_from_nowhere() {
    let words = [
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    ];
    for Problem { question, solution, .. } in samples(Split::HeldOut) {
        let plain = question.replace(',', "");
        let digits = plain.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
        let mut known: HashSet<i64> = digits.collect();
        let lower = question.to_lowercase();
        known.extend((2..).zip(words).filter(|(_, word)| lower.contains(word)).map(|(n, _)| n));
        for (expression, result) in annotations(&solution) {
            let fraction = expression.contains('.');
            let operands = expression.split(['+', '-', '*', '/']);
            for operand in operands.filter_map(|operand| operand.parse::<i64>().ok()) {
                let implied = KNOWN_TO_ALL.contains(&operand) || fraction;
                assert!(known.contains(&operand) || implied, "{operand}: {question}\n{solution}");
            }
            known.insert(result);
        }
    }
}

#[test]
fn the_splits_are_disjoint() {
    let training = samples(Split::Training);
    let held_out = samples(Split::HeldOut);
    let seen: HashSet<&str> = training.iter().map(|p| p.question.as_str()).collect();
    for problem in &held_out {
        assert_eq!(Split::of(&problem.question), Split::HeldOut);
        assert!(!seen.contains(problem.question.as_str()), "{}", problem.question);
    }
    assert!(training.iter().all(|p| Split::of(&p.question) == Split::Training));
}

#[test]
fn about_one_question_of_sixteen_is_held_out() {
    let drafts = (0..8000).map(|index| families::draft(&mut Dice::new(3, index)));
    let held_out = drafts.filter(|d| Split::of(&d.problem.question) == Split::HeldOut).count();
    assert!((400..600).contains(&held_out), "{held_out} of 8000");
}

#[test]
fn a_seed_names_the_same_problems_for_ever() {
    let first = problem(Split::HeldOut, 7, 11);
    assert_eq!(first, problem(Split::HeldOut, 7, 11));
    assert_ne!(first, problem(Split::HeldOut, 7, 12));
    assert_ne!(first, problem(Split::HeldOut, 8, 11));
    let texts: String = samples(Split::HeldOut)
        .iter()
        .take(500)
        .map(|p| format!("{}\n{}\n", p.question, p.solution))
        .collect();
    assert_eq!(
        stable_hash(&texts),
        0x8d9e_9c3f_532b_66be,
        "the generator changed: published numbers need a new run"
    );
}

#[test]
fn problems_take_many_shapes() {
    let drafts = (0..COUNT).map(|index| families::draft(&mut Dice::new(SEED, index)));
    let shapes: BTreeSet<u64> = drafts.map(|draft| draft.shape).collect();
    assert!(shapes.len() > 2500, "only {} shapes in {COUNT} problems", shapes.len());
    let questions: HashSet<String> =
        samples(Split::Training).into_iter().map(|p| p.question).collect();
    assert!(questions.len() as u64 > COUNT * 99 / 100, "{} questions", questions.len());
}

#[test]
fn texts_are_clean() {
    let slips =
        ["  ", " ,", " .", " ?", "..", "{", "}", "[", "]", "|", " a a", " a e", " a i", "'s's"];
    for Problem { question, solution, .. } in samples(Split::Training) {
        for text in [question.as_str(), solution.as_str()] {
            for slip in slips {
                assert!(!text.contains(slip), "{slip:?} in {text}");
            }
            assert!(text.is_ascii(), "{text}");
            assert!(!text.starts_with(|c: char| c.is_lowercase()), "{text}");
        }
        assert!(question.ends_with(['?', '.']), "{question}");
    }
}

#[test]
fn every_step_count_is_common() {
    let mut counts = [0; 5];
    for problem in samples(Split::HeldOut) {
        counts[problem.steps as usize] += 1;
    }
    assert!(counts[2..].iter().all(|count| *count > COUNT / 10), "{counts:?}");
}

#[test]
fn answers_are_read_from_replies() {
    let cases = [
        ("#### 72", Some(72)),
        ("She has 3.\n#### 1,234", Some(1234)),
        ("#### $5,000.", Some(5000)),
        ("####72\n", Some(72)),
        ("#### 18.00", Some(18)),
        ("#### 18.5", None),
        ("#### -4", Some(-4)),
        ("#### -$4", Some(-4)),
        ("#### 3 apples", Some(3)),
        ("#### 1\n#### 2", Some(2)),
        ("####", None),
        ("#### ,", None),
        ("#### none", None),
        ("72", None),
        ("", None),
        ("#### 99999999999999999999", None),
    ];
    for (text, expected) in cases {
        assert_eq!(extract_answer(text), expected, "{text:?}");
    }
}

#[test]
fn lines_of_json_hold_the_problems_in_order() {
    let mut out = Vec::new();
    write_jsonl(&mut out, Split::Training, SEED, 40).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), 40);
    for (index, line) in text.lines().enumerate() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let expected = problem(Split::Training, SEED, index as u64);
        assert_eq!(row["question"], expected.question);
        assert_eq!(row["solution"], expected.solution);
    }
}
