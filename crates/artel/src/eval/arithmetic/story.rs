//! Building one problem: facts, calculations, a question.

use super::Problem;
use super::dice::Dice;
use super::stable_hash;
use super::template::{Filling, NumberStyle, Slot, choose, fill, sentence};
use super::words::{Noun, Person};

/// One calculation of a chain.
///
/// Families draw quantities freely; [`Story::step`] refuses a calculation outside these limits and
/// the whole draft is drawn again. The limits keep every calculation one that people do in their
/// head or with one line of paper, and every result a positive integer below 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// `a+b`
    Add,
    /// `a-b`
    Subtract,
    /// `a*b`: a factor up to 10 with one up to 400, or a round factor with one up to 99.
    Multiply,
    /// `a/b`: exact, a divisor up to 12 or a round one, a dividend up to 2,500.
    Divide,
    /// `a*0.25`: 10, 20, 25, 50 or 75 percent of a number up to 2,000; `b` is the percentage.
    Percent,
}

use Operation::{Add, Divide, Multiply, Percent, Subtract};

const ROUND_FACTORS: [i64; 6] = [12, 20, 25, 50, 60, 100];

impl Operation {
    /// The result, if the calculation is within the limits.
    pub(super) fn apply(self, a: i64, b: i64) -> Option<i64> {
        let (large, small) = (a.max(b), a.min(b));
        let round = |n: i64| ROUND_FACTORS.contains(&n);
        let result = match self {
            Add => a + b,
            Subtract => a - b,
            Multiply if small <= 10 && large <= 400 => a * b,
            Multiply if (round(a) || round(b)) && (large <= 99 || small <= 12) => a * b,
            Multiply if small <= 12 && large == 100 => a * b,
            Divide if (2..=12).contains(&b) || round(b) => exact(a, b, 2500)?,
            Percent => exact(a * b, 100, 2000 * b)?,
            _ => return None,
        };
        (2..10_000).contains(&result).then_some(result)
    }

    /// The calculation without its result, as the solution writes it.
    fn expression(self, a: i64, b: i64) -> String {
        match self {
            Add => format!("{a}+{b}"),
            Subtract => format!("{a}-{b}"),
            Multiply => format!("{a}*{b}"),
            Divide => format!("{a}/{b}"),
            Percent if b % 10 == 0 => format!("{a}*0.{}", b / 10),
            Percent => format!("{a}*0.{b}"),
        }
    }
}

fn exact(dividend: i64, divisor: i64, dividend_max: i64) -> Option<i64> {
    (dividend <= dividend_max && dividend % divisor == 0).then(|| dividend / divisor)
}

/// A problem and the shape it was cast in: two problems of one shape differ only in what fills
/// their slots.
pub(super) struct Draft {
    pub(super) problem: Problem,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests count shapes"))]
    pub(super) shape: u64,
}

/// A problem under construction.
pub(super) struct Story<'d> {
    dice: &'d mut Dice,
    slots: Vec<(&'static str, Slot)>,
    sentences: Vec<String>,
    lines: Vec<String>,
    result: i64,
    forms: String,
    style: NumberStyle,
    noise_left: u32,
}

impl<'d> Story<'d> {
    pub(super) fn new(dice: &'d mut Dice) -> Self {
        let style = NumberStyle { words: dice.chance(30), separators: dice.chance(30) };
        let noise_left = u32::from(dice.chance(35)) + u32::from(dice.chance(10));
        let (slots, sentences, lines) = (Vec::new(), Vec::new(), Vec::new());
        let forms = String::with_capacity(512);
        Story { dice, slots, sentences, lines, result: 0, forms, style, noise_left }
    }

    /// The random stream of this story.
    pub(super) fn dice(&mut self) -> &mut Dice {
        self.dice
    }

    /// Sets a slot to a quantity and returns it.
    pub(super) fn set(&mut self, key: &'static str, n: i64) -> i64 {
        self.slots.push((key, Slot::Number(n)));
        n
    }

    /// Draws a quantity in `low..=high` into a slot.
    pub(super) fn draw(&mut self, key: &'static str, low: i64, high: i64) -> i64 {
        let n = self.dice.between(low, high);
        self.set(key, n)
    }

    /// Draws one of the quantities into a slot.
    pub(super) fn draw_of(&mut self, key: &'static str, choices: &[i64]) -> i64 {
        let n = self.dice.pick(choices);
        self.set(key, n)
    }

    /// Sets a slot to a form, filled now.
    pub(super) fn text(&mut self, key: &'static str, form: &str) {
        let chosen = choose(form, self.dice);
        let text = fill(&chosen, self.filling(self.style));
        self.forms.push_str(&chosen);
        self.slots.push((key, Slot::Text(text)));
    }

    /// Sets a slot to a noun of the list that the story does not use yet.
    pub(super) fn noun(&mut self, key: &'static str, nouns: &'static [Noun]) {
        let noun = loop {
            let noun = &nouns[self.dice.below(nouns.len())];
            let used = |slot: &Slot| matches!(slot, Slot::Noun(other) if other.one == noun.one);
            if !self.slots.iter().any(|(_, slot)| used(slot)) {
                break noun;
            }
        };
        self.slots.push((key, Slot::Noun(noun)));
    }

    /// Sets a slot to a person that the story does not know yet.
    pub(super) fn person(&mut self, key: &'static str) {
        self.introduce(key, Person::named);
    }

    /// Sets a slot to a person who may be known by name or by role.
    pub(super) fn person_or_role(&mut self, key: &'static str) {
        let by_role = self.dice.chance(20);
        self.introduce(key, if by_role { Person::role } else { Person::named });
    }

    fn introduce(&mut self, key: &'static str, draw: fn(&mut Dice) -> Person) {
        let person = loop {
            let person = draw(self.dice);
            let alike = |other: &Person| {
                other.name.contains(&person.name) || person.name.contains(&other.name)
            };
            let known = |slot: &Slot| matches!(slot, Slot::Person(other) if alike(other));
            if !self.slots.iter().any(|(_, slot)| known(slot)) {
                break person;
            }
        };
        self.slots.push((key, Slot::Person(person)));
    }

    /// Tells one sentence, in one of the given forms; rather one that the story has not told yet.
    pub(super) fn say(&mut self, forms: &[&str]) {
        let mut chosen = String::new();
        for _ in 0..4 {
            chosen = choose(self.dice.pick(forms), self.dice);
            if !self.forms.contains(&chosen) {
                break;
            }
        }
        self.sentences.push(sentence(&chosen, self.filling(self.style)));
        self.forms.push_str(&chosen);
    }

    /// Perhaps tells a fact that nobody needs; `{d}` is a quantity of no meaning.
    pub(super) fn noise(&mut self, forms: &[&str]) {
        if self.noise_left > 0 && self.dice.chance(70) {
            self.noise_left -= 1;
            self.draw("d", 2, 60);
            self.say(forms);
        }
    }

    /// Puts the sentences told since the first `kept` in any order.
    pub(super) fn shuffle_sentences(&mut self, kept: usize) {
        self.dice.shuffle(&mut self.sentences[kept..]);
    }

    /// Now and then joins two sentences about the first person: "She buys 5 more. She sells 2."
    /// becomes "She buys 5 more and then sells 2."
    pub(super) fn join_sentences(&mut self) {
        let Some((_, Slot::Person(person))) = self.slots.iter().find(|(key, _)| *key == "A") else {
            return;
        };
        let pronoun = if person.gender.he() == "he" { "He " } else { "She " };
        let names = [format!("{} ", person.name), format!("A {} ", person.name)];
        for at in (1..self.sentences.len()).rev() {
            let (first, second) = (&self.sentences[at - 1], &self.sentences[at]);
            let subject_is_same = second.starts_with(pronoun)
                && (first.starts_with(pronoun) || names.iter().any(|n| first.starts_with(n)));
            let simple = !first.contains(" and ") && !second.contains(" and then ");
            if subject_is_same && simple && self.dice.chance(30) {
                let link = self.dice.pick(&[" and then ", " and ", " and "]);
                let rest = self.sentences.remove(at);
                let joined = &mut self.sentences[at - 1];
                joined.truncate(joined.len() - 1);
                joined.push_str(link);
                joined.push_str(&rest[pronoun.len()..]);
            }
        }
    }

    /// Works out one calculation; the form's `{=}` becomes `a+b = <<a+b=c>>c`, and `{=$}` the same
    /// in dollars. `None` if it is outside the limits of [`Operation`].
    pub(super) fn step(&mut self, a: i64, operation: Operation, b: i64, form: &str) -> Option<i64> {
        const PLAIN: NumberStyle = NumberStyle { words: false, separators: false };
        let result = operation.apply(a, b)?;
        let expression = operation.expression(a, b);
        for (key, currency) in [("=", ""), ("=$", "$")] {
            let worked = format!("{expression} = {currency}<<{expression}={result}>>{result}");
            self.slots.push((key, Slot::Text(worked)));
        }
        let chosen = choose(form, self.dice);
        self.lines.push(sentence(&chosen, self.filling(PLAIN)));
        self.forms.push_str(&chosen);
        self.result = result;
        Some(result)
    }

    fn filling(&self, style: NumberStyle) -> Filling<'_> {
        Filling { slots: &self.slots, style, told: &self.sentences }
    }

    /// How many calculations were made so far.
    pub(super) fn steps(&self) -> usize {
        self.lines.len()
    }

    /// The finished problem, if its chain has two to four steps and its solution names nobody whom
    /// the question does not.
    pub(super) fn finish(self) -> Option<Draft> {
        let steps = self.lines.len();
        let answer = self.result;
        let (question, lines) = (self.sentences.join(" "), self.lines.join("\n"));
        let stranger = |slot: &Slot| match slot {
            Slot::Person(p) => lines.contains(&p.name) && !question.contains(&p.name),
            _ => false,
        };
        let complete = (2..=4).contains(&steps) && !self.slots.iter().any(|(_, s)| stranger(s));
        complete.then(|| Draft {
            problem: Problem {
                solution: format!("{lines}\n#### {answer}"),
                question,
                answer,
                steps: steps as u32,
            },
            shape: stable_hash(&self.forms),
        })
    }
}
