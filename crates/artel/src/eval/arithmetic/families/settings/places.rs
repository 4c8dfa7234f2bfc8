//! Settings in which a place holds things or people.

use super::super::super::words::{GOODS, nouns};
use super::Setting;

pub(super) const LIBRARY: Setting = Setting {
    items: nouns!["book", "novel", "magazine", "atlas" / "atlases", "audio book", "picture book"],
    start: &[
        "[A|The school|The town|A small] library has {n} {item}.",
        "There are {n} {item} on the shelves of {A}'s library.",
    ],
    start_in_groups: &[
        "A [library|bookcase] has {g} shelves with {m} {item} on each [shelf|].",
        "In a library there are {g} shelves, and each [one|shelf] holds {m} {item}.",
    ],
    started: "The shelves hold {=} {item}.",
    gain: &[
        "The library [buys|receives] {n} new {item}.",
        "{A} [donates|returns] {n} {item}.",
        "[On Monday|The next day], readers bring back {n} {item}.",
    ],
    gain_in_groups: &[
        "{g} [students|families] donate {m} {item} each.",
        "A truck delivers {g} boxes of {m} {item}.",
    ],
    gained: "The library gets {=} {item}.",
    lose: &[
        "[On Tuesday|That week|In the morning], {n} {item} are [borrowed|checked out|lent out].",
        "{A}, the librarian, sorts out {n} [old|damaged] {item}.",
    ],
    lose_part: &[
        "Then {part} of the {item} are [moved to another branch|borrowed|sent away for repair].",
        "The library [sells|gives away] {part} of its {item}.",
    ],
    lost: "That takes away {=} {item}.",
    double: &["Thanks to a [grant|gift], the number of {item} {doubles}."],
    now: "The library [now|then] has {=} {item}.",
    left: "The library has {=} {item} left.",
    ask: &[
        "How many {item} [does the library have|are in the library] now?",
        "How many {item} are there in the library [at the end|after that]?",
    ],
    split: &["They are spread equally over {k} shelves. How many {item} stand on each shelf?"],
    split_line: "Each shelf gets {=} {item}.",
    price: &["How much does it cost to put a cover on each of the {item} now there, at ${k} each?"],
    price_line: "The covers cost {=$}.",
    noise: &[
        "The library opened {d} years ago.",
        "There are {d} [chairs|computers|tables] in the reading room.",
    ],
};

pub(super) const STORE: Setting = Setting {
    items: GOODS,
    start: &[
        "A [store|shop] has {n} {item} in stock.",
        "{A}'s shop [starts|begins] the week with {n} {item}.",
        "{A} counts {n} {item} in the [store|stockroom].",
    ],
    start_in_groups: &[
        "A shop [receives|orders] {g} boxes of {item} with {m} {item} in each box.",
        "There are {g} shelves in {A}'s shop with {m} {item} on each.",
    ],
    started: "The shop has {=} {item}.",
    gain: &[
        "A delivery of {n} {item} arrives[| on Wednesday].",
        "Customers return {n} {item}.",
        "{A} orders {n} more {item}.",
    ],
    gain_in_groups: &["A truck brings {g} more boxes of {m} {item} each."],
    gained: "The delivery has {=} {item}.",
    lose: &[
        "On [Monday|Friday|the first day], {n} {item} are sold.",
        "The shop sells {n} {item} [in the morning|online].",
    ],
    lose_part: &[
        "During a sale, the shop sells {part} of its {item}.",
        "{part} of the {item} are sold [over the weekend|within a week].",
    ],
    lost: "The shop sells {=} {item}.",
    double: &["Before the holidays, the shop {doubles} its stock[| of {item}]."],
    now: "The shop [now|then] has {=} {item}.",
    left: "The shop has {=} {item} left.",
    ask: &[
        "How many {item} are [now|] in the shop[| at the end]?",
        "How many {item} does the shop have [left|now]?",
    ],
    split: &["The {item} are placed equally on {k} shelves. How many are on each shelf?"],
    split_line: "Each shelf has {=} {item}.",
    price: &[
        "What is the total value of the {item} in the shop now if one costs ${k}?",
        "If the shop sells the {item} it has now for ${k} each, how much money does it take in?",
    ],
    price_line: "They are worth {=$}.",
    noise: &["The shop has {d} [shelves for shoes|windows].", "The shop is open {d} hours a week."],
};

pub(super) const NURSERY: Setting = Setting {
    items: nouns![
        "tree",
        "rose bush" / "rose bushes",
        "tulip",
        "cactus" / "cacti",
        "seedling",
        "fern",
        "sunflower",
        "shrub"
    ],
    start: &[
        "A [garden|plant nursery|park] has {n} {item}.",
        "{A} [plants|grows] {n} {item} [in the garden|behind the house].",
    ],
    start_in_groups: &[
        "{A} plants {g} rows of {item} with {m} [{item}|] in each row.",
        "A garden has {g} rows of {m} {item}.",
    ],
    started: "The garden has {=} {item}.",
    gain: &["In spring, {n} more {item} are planted.", "{A} [adds|plants] another {n} {item}."],
    gain_in_groups: &[
        "{g} volunteers plant {m} {item} each.",
        "{A} adds {g} more rows of {m} {item} each.",
    ],
    gained: "They add {=} {item}.",
    lose: &["A storm destroys {n} {item}.", "{A} [sells|removes|digs up] {n} {item}."],
    lose_part: &[
        "[During the winter|In a dry summer], {part} of the {item} die.",
        "{A} [sells|gives away] {part} of the {item}.",
    ],
    lost: "The garden loses {=} {item}.",
    double: &["The next year, the number of {item} {doubles}."],
    now: "The garden now has {=} {item}.",
    left: "The garden has {=} {item} left.",
    ask: &[
        "How many {item} are in the garden [now|in the end]?",
        "How many {item} [does the garden have now|are there now]?",
    ],
    split: &["They are replanted in {k} equal rows. How many {item} are in each row?"],
    split_line: "Each row has {=} {item}.",
    price: &["If each of the {item} there now needs ${k} worth of fertilizer, how much does the \
     fertilizer cost?"],
    price_line: "The fertilizer costs {=$}.",
    noise: &[
        "The garden is {d} meters long.",
        "It rained on {d} days that year.",
        "{A} also has {d} [garden tools|flower pots].",
    ],
};

pub(super) const POND: Setting = Setting {
    items: nouns![
        "fish" / "fish",
        "goldfish" / "goldfish",
        "turtle",
        "frog",
        "koi" / "koi",
        "snail",
        "shrimp" / "shrimp"
    ],
    start: &[
        "[A pond|An aquarium|{A}'s pond] has {n} {item}[| in it].",
        "There are {n} {item} in {A}'s [tank|pond|aquarium].",
    ],
    start_in_groups: &["A zoo moves {g} tanks of {item}, with {m} {item} in each tank, into one \
     big pond."],
    started: "There are {=} {item} in the pond at first.",
    gain: &[
        "{A} puts {n} more {item} into the water.",
        "[In spring|In June], {n} {item} are born.",
    ],
    gain_in_groups: &[
        "{g} keepers each bring {m} more {item}.",
        "{A} buys {g} bags with {m} {item} in each and sets them free there.",
    ],
    gained: "They bring {=} {item}.",
    lose: &["A heron eats {n} {item}.", "{A} [catches|takes out] {n} {item}[| for a friend]."],
    lose_part: &[
        "{A} moves {part} of the {item} to another [pond|tank].",
        "A zoo buys {part} of the {item}.",
    ],
    lost: "{=} {item} leave.",
    double: &["After [a year|two years], the number of {item} {doubles}."],
    now: "There are now {=} {item}.",
    left: "There are {=} {item} left.",
    ask: &[
        "How many {item} are there now?",
        "How many {item} [live there in the end|are left there]?",
    ],
    split: &["{A} moves all of the {item} into {k} tanks, the same number in each. How many \
     {item} are in each tank?"],
    split_line: "Each tank gets {=} {item}.",
    price: &["Each of the {item} there now eats {k} [grams|pellets] of food a day. How much food \
     do they need for a day?"],
    price_line: "They eat {=} a day.",
    noise: &["The water is {d} [inches|centimeters] deep.", "There are {d} plants in the water."],
};

pub(super) const SCHOOL: Setting = Setting {
    items: nouns![
        "student",
        "child" / "children",
        "member",
        "dancer",
        "player",
        "volunteer",
        "swimmer"
    ],
    start: &[
        "A [club|summer camp|school program] has {n} {item}.",
        "[In September|Last year|At first], {n} {item} [sign up for a camp|join a club].",
    ],
    start_in_groups: &[
        "A camp has {g} groups of {m} {item} each.",
        "There are {g} teams with {m} {item} each in a [league|club].",
    ],
    started: "There are {=} {item} at the start.",
    gain: &[
        "Then {n} [new|more] {item} join.",
        "[In the second week|A month later], {n} more {item} arrive.",
    ],
    gain_in_groups: &[
        "Then {g} buses arrive with {m} {item} each.",
        "{g} schools send {m} more {item} each.",
    ],
    gained: "{=} more {item} come.",
    lose: &["{n} {item} [leave|go home|quit][| early].", "After a while, {n} {item} move away."],
    lose_part: &[
        "{part} of the {item} [leave|go home|stop coming] [at noon|after the first week].",
        "Then {part} of the {item} drop out.",
    ],
    lost: "{=} {item} leave.",
    double: &["[Over the year|By the summer], the number of {item} {doubles}."],
    now: "[There are now|That makes] {=} {item}.",
    left: "[There are|That leaves] {=} {item}[| left].",
    ask: &[
        "How many {item} are there now?",
        "How many {item} are [in the group|there] in the end?",
    ],
    split: &["The coach, {A}, forms {k} teams of equal size. How many {item} are on each team?"],
    split_line: "Each team has {=} {item}.",
    price: &[
        "Everyone still there pays a fee of ${k}. How much is collected?",
        "{A} buys a ${k} [cap|lunch|ticket] for each of them. How much does {A} pay?",
    ],
    price_line: "The total is {=$}.",
    noise: &["{A}, the leader, is {d} years old.", "The building has {d} rooms."],
};

pub(super) const TRAIN: Setting = Setting {
    items: nouns!["passenger", "person" / "people", "traveler", "tourist"],
    start: &[
        "A [train|bus|ferry] leaves the [station|harbor|city] with {n} {item} on board.",
        "There are {n} {item} on a [train|ferry|bus].",
    ],
    start_in_groups: &["A train has {g} cars with {m} {item} in each car."],
    started: "There are {=} {item} on board at first.",
    gain: &[
        "At the [first|next] stop, {n} {item} get on.",
        "{n} more {item} [board|get on] at the [next|following] stop.",
    ],
    gain_in_groups: &["At the next stop, {g} groups of {m} {item} get on."],
    gained: "{=} {item} get on.",
    lose: &[
        "At the [next|following] stop, {n} {item} get off.",
        "{n} {item} [get off|leave] [at the museum|in the next town].",
    ],
    lose_part: &[
        "At the next stop, {part} of the {item} get off.",
        "{part} of the {item} on board get off [at the airport|in the city center].",
    ],
    lost: "{=} {item} get off.",
    double: &["At the central station, the number of {item} on board {doubles}."],
    now: "There are now {=} {item} on board.",
    left: "There are {=} {item} left on board.",
    ask: &[
        "How many {item} are on board [now|after that|at the end]?",
        "How many {item} are [still on board|on board when it arrives]?",
    ],
    split: &["They sit equally in {k} cars. How many {item} are in each car?"],
    split_line: "Each car has {=} {item}.",
    price: &["Each of the {item} now on board pays ${k}. How much do they pay in total?"],
    price_line: "They pay {=$}.",
    noise: &["The ride takes {d} minutes.", "The driver has worked there for {d} months."],
};

pub(super) const WAREHOUSE: Setting = Setting {
    items: nouns![
        "box" / "boxes",
        "chair",
        "tire",
        "bicycle",
        "brick",
        "bottle",
        "package",
        "barrel",
        "sack of rice" / "sacks of rice",
        "tent"
    ],
    start: &[
        "A warehouse [stores|holds|has] {n} {item}.",
        "There are {n} {item} in a [warehouse|storage room|depot].",
    ],
    start_in_groups: &[
        "A warehouse holds {g} stacks of {m} {item} each.",
        "{g} trucks bring {m} {item} each to a depot.",
    ],
    started: "At first, there are {=} {item}.",
    gain: &[
        "A [truck|supplier] delivers {n} more {item}.",
        "{n} more {item} [arrive|come in] [the next day|on Thursday].",
    ],
    gain_in_groups: &["{g} [trucks|carts] bring {m} more {item} each."],
    gained: "That is {=} more {item}.",
    lose: &[
        "{A} ships {n} {item} to a [customer|store].",
        "{n} {item} are [taken out|sent away|used at a building site].",
    ],
    lose_part: &[
        "{part} of the {item} are [shipped|sent] to [another city|a customer].",
        "The manager, {A}, sells {part} of the {item}.",
    ],
    lost: "{=} {item} are taken away.",
    double: &["A large shipment {doubles} the number of {item} there."],
    now: "There are now {=} {item}.",
    left: "There are {=} {item} left.",
    ask: &[
        "How many {item} are there now?",
        "How many {item} [remain|are left] in [storage|the building]?",
    ],
    split: &["{k} [trucks|vans] carry them away, each with the same load. How many {item} does \
     each of them carry?"],
    split_line: "Each carries {=} {item}.",
    price: &[
        "Storing one of them costs ${k} a month. How much does it cost to store all that are \
     there now for a month?",
    ],
    price_line: "The storage costs {=$}.",
    noise: &[
        "The hall is {d} feet high.",
        "{d} people work there.",
        "The gate opens at 7 in the morning.",
    ],
};
