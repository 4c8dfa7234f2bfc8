//! Tickets sold and guests served.

use super::super::story::Operation::{Add, Divide, Multiply, Subtract};
use super::super::story::Story;
use super::super::words::SNACKS;

/// Tickets of two prices, and what they bring in.
pub(super) fn takings(s: &mut Story) -> Option<()> {
    s.person("A");
    s.text("event", "[concert|play|museum|fair|circus|movie|match|zoo|puppet show|boat tour]");
    let child = s.draw("p", 2, 12);
    let adult = {
        let surcharge = s.dice().between(1, 14);
        s.set("u", child + surcharge)
    };
    let (children, adults) = (s.draw("q", 4, 60), s.draw("r", 4, 60));
    s.say(&[
        "Tickets for the {event} cost ${u} for adults and ${p} for children.",
        "At the {event}, a ticket for a child is ${p} and a ticket for an adult is ${u}.",
    ]);
    s.noise(&[
        "The {event} lasts {d} minutes.",
        "{A} sits in row {d}.",
        "Last year, {d} people came late.",
    ]);
    s.say(&[
        "{r} adults and {q} children [come|buy tickets|attend].",
        "There are {q} children and {r} adults[| in the audience].",
    ]);
    let from_adults = s.step(adults, Multiply, adult, "The adults pay {=$}.")?;
    let from_children = s.step(children, Multiply, child, "The children pay {=$}.")?;
    match s.dice().below(3) {
        0 => {
            s.say(&[
                "How much [money|] do the tickets bring in [altogether|together]?",
                "What is the total paid for tickets?",
            ]);
            s.step(from_adults, Add, from_children, "Together, they pay {=$}.")?;
        }
        1 => {
            let costs = s.draw("k", 20, 300);
            let total = s.step(from_adults, Add, from_children, "Together, they pay {=$}.")?;
            s.say(&[
                "The hall and the lights cost ${k}. How much profit is made?",
                "After paying ${k} for [the band|staff|rent], how much is left?",
            ]);
            s.step(total, Subtract, costs, "After the costs, {=$} is left.")?;
        }
        _ => {
            s.say(&[
                "How much more do the adults pay than the children?",
                "By how much do the adults' tickets exceed the children's in total?",
            ]);
            s.step(from_adults, Subtract, from_children, "The difference is {=$}.")?;
        }
    }
    Some(())
}

/// Guests, what each of them gets, and how many packs or pieces are needed.
pub(super) fn guests(s: &mut Story) -> Option<()> {
    s.person("A");
    s.noun("item", SNACKS);
    s.text("event", "[birthday party|wedding|picnic|class party|family reunion|meeting]");
    let (tables, seats, each) = (s.draw("q", 2, 12), s.draw("r", 2, 12), s.draw("m", 2, 6));
    s.say(&[
        "{A} [plans|organizes] a {event} with {q} tables and {r} guests at each table.",
        "At a {event}, there are {q} tables[. {r} guests sit at each of them| with {r} guests \
         each].",
    ]);
    s.noise(&[
        "The music costs ${d} an hour.",
        "The {event} starts in {d} days.",
        "{A} sent {d} thank-you cards.",
    ]);
    let guests = s.step(tables, Multiply, seats, "There are {=} guests.")?;
    let guests = if s.dice().chance(30) {
        let absent = s.draw("k", 2, 12);
        s.say(&["{k} of the guests [do not come|are ill|cancel]."]);
        s.step(guests, Subtract, absent, "{=} guests come.")?
    } else {
        guests
    };
    s.say(&[
        "[Each guest|Everyone] [gets|eats] {m} {item}.",
        "There are {m} {item} for [each guest|everyone].",
    ]);
    let needed = s.step(guests, Multiply, each, "They [need|get] {=} {item}.")?;
    if s.steps() < 4 && s.dice().chance(60) {
        let pack = s.draw("k", 2, 12);
        s.say(&[
            "The {item} come in [packs|boxes] of {k}. How many packs [are needed|must {A} buy]?",
            "If {k} {item} fit on a plate, how many plates are filled?",
        ]);
        s.step(needed, Divide, pack, "That makes {=}.")?;
    } else {
        s.say(&[
            "How many {item} are needed?",
            "How many {item} does {A} need [in total|altogether]?",
        ]);
    }
    Some(())
}
