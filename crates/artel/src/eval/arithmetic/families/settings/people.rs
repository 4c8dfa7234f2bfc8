//! Settings in which a person holds things.

use super::super::super::words::{ANIMALS, BAKES, KEEPSAKES, PRODUCE, nouns};
use super::Setting;

pub(super) const COLLECTION: Setting = Setting {
    items: KEEPSAKES,
    start: &[
        "{A} [has|owns] {n} {item}[| in {A.his} collection| in a [drawer|box|jar]].",
        "There are {n} {item} in {A}'s [collection|room|box].",
        "{A} [collects {item} and has {n} of them|starts the [week|month|year] with {n} {item}].",
    ],
    start_in_groups: &[
        "{A} has {g} [boxes|albums|bags] with {m} {item} in each.",
        "{A} keeps {A.his} {item} in {g} [drawers|jars], {m} [{item}|] in each [one|].",
        "{A} [buys|orders|receives] {g} packs of {item}, and each pack [has|contains] {m} {item}.",
    ],
    started: "{A} [has|starts with] {=} {item}.",
    gain: &[
        "[Then|Later|The next day], {A.he} [buys|finds|receives] {n} more {item}.",
        "{A.his} [uncle|aunt|cousin|grandmother|neighbor|best friend] gives {A.him} {n} more \
         {item}.",
        "[For {A.his} birthday|At the fair|In a trade], {A.he} gets {n} [more|new] {item}.",
    ],
    gain_in_groups: &[
        "{A.he} [then|later|] [buys|orders] {g} more packs of {m} {item} each.",
        "{g} friends each give {A.him} {m} [more|] {item}.",
        "[Every day|Each day] for {g} days, {A.he} [finds|gets|makes] {m} more {item}.",
    ],
    gained: "{A} gets {=} more {item}.",
    lose: &[
        "{A.he} [gives|hands] {n} {item} to {A.his} [brother|sister|cousin|friend].",
        "[Sadly|Unfortunately|One day], {A.he} loses {n} {item}[| on the way to school].",
        "{A.he} [trades away|sells|gives away] {n} of [them|the {item}].",
    ],
    lose_part: &[
        "{A.he} gives {part} of {A.his} {item} to a [friend|neighbor|classmate].",
        "[Then|Later|After that], {A.he} [sells|gives away|donates] {part} of the {item} {A.he} \
         has.",
    ],
    lost: "{A} gives up {=} {item}.",
    double: &[
        "[Over the summer|Over the next month|A year later], {A.his} collection {doubles} in size.",
        "{A.he} [works hard|keeps looking] and {doubles} the number of {item} {A.he} has.",
    ],
    now: "{A} [now has|then has] {=} {item}.",
    left: "{A} has {=} {item} left.",
    ask: &[
        "How many {item} does {A} have [now|in the end|at the end]?",
        "[What is|Find] the number of {item} {A} has [now|in the end].",
        "How many {item} are [now|] in {A}'s [possession|collection][| now]?",
    ],
    split: &[
        "{A.he} shares the {item} equally among {k} [friends|children]. How many does each get?",
        "If {A.he} puts the {item} into {k} [equal piles|bags equally], how many are in each?",
    ],
    split_line: "Each [one|part] gets {=} {item}.",
    price: &[
        "If {A.he} sells all the {item} for ${k} each, how much [money|] [does|will] {A.he} \
         [get|make]?",
        "{A.he} sells every one of them for ${k}. How [much|many dollars] does {A.he} \
         [earn|receive]?",
    ],
    price_line: "{A} gets {=$}.",
    noise: &[
        "{A.he} has been collecting [things|] for {d} [months|weeks].",
        "{A.his} [brother|sister] is {d} years old.",
        "{A.his} [friend|neighbor] has {d} [pencils|video games] at home.",
        "{A} [lives|goes to a school] {d} [blocks|minutes] away.",
    ],
};

pub(super) const PANTRY: Setting = Setting {
    items: PRODUCE,
    start: &[
        "{A} has {n} {item} in [the kitchen|the cellar|the pantry|a basket].",
        "{A} [picked|harvested|bought] {n} {item} [on Monday|this morning|last week].",
        "A basket [holds|contains] {n} {item} from {A}'s [garden|orchard].",
    ],
    start_in_groups: &[
        "{A} [picks|carries home] {g} baskets of {item} with {m} {item} in each basket.",
        "{g} trees in {A}'s garden give {m} {item} each.",
    ],
    started: "There are {=} {item} at first.",
    gain: &[
        "{A.he} [picks|buys|brings in] {n} more {item}.",
        "A neighbor [brings|drops off|leaves] {n} more {item}.",
        "[The next day|On Tuesday|In the afternoon], {n} more {item} [arrive|are added].",
    ],
    gain_in_groups: &[
        "{g} [neighbors|cousins|friends] bring {m} more {item} each.",
        "{A.he} then buys {g} bags, each with {m} {item}[| inside].",
    ],
    gained: "That adds {=} {item}.",
    lose: &[
        "{A.he} uses {n} [of them|{item}] to make [jam|soup|juice|a salad].",
        "{n} [of the|] {item} [turn out to be rotten|go bad] and are thrown away.",
        "The [family|children|guests] [eat|eats] {n} {item}[| for lunch| during the week].",
    ],
    lose_part: &[
        "{A.he} [gives|brings] {part} of the {item} to [a food bank|{A.his} mother|the school \
         kitchen].",
        "Then {part} of the {item} [are|get] [used for a big dinner|made into jam].",
    ],
    lost: "That takes away {=} {item}.",
    double: &[
        "A second harvest {doubles} the number of {item}.",
        "A big delivery {doubles} {A.his} supply.",
    ],
    now: "[Now there are|That makes] {=} {item}.",
    left: "[There are|That leaves] {=} {item}[| left].",
    ask: &[
        "How many {item} [are left|remain|are there now]?",
        "How many {item} does {A} have [in the end|now]?",
    ],
    split: &[
        "{A} packs them into {k} [boxes|bags] with the same number in each. How many {item} are \
         in one?",
        "{k} [families|friends] share the {item} equally. How many {item} does each of them get?",
    ],
    split_line: "Each of the {k} gets {=} {item}.",
    price: &["{A} sells the {item} at the market for ${k} each. How much [money|] does {A.he} \
     [make|earn]?"],
    price_line: "{A} makes {=$}.",
    noise: &[
        "The [garden|orchard] is {d} years old.",
        "There are also {d} [jars of honey|eggs] on the shelf.",
        "{A} [woke up|got up] at 6 o'clock and worked for {d} minutes.",
    ],
};

pub(super) const BAKERY: Setting = Setting {
    items: BAKES,
    start: &[
        "{A} [bakes|makes] {n} {item} [for a party|for the school fair|in the morning].",
        "[This morning|On Saturday], {A} [took|takes] {n} {item} out of the oven.",
        "{A}'s [bakery|cafe] [starts|opens] the day with {n} {item}.",
    ],
    start_in_groups: &[
        "{A} [bakes|makes] {g} [trays|batches] of {item} with {m} [{item}|] in each [tray|batch].",
        "{A} fills {g} baking sheets with {m} {item} each.",
        "A tray holds {m} {item}, and {A} bakes {g} [full|] trays.",
    ],
    started: "{A} [bakes|makes] {=} {item}.",
    gain: &[
        "[Later|At noon], {A.he} bakes {n} more {item}.",
        "{A.his} [helper|father|assistant] adds {n} [more|] {item}.",
    ],
    gain_in_groups: &[
        "{A.he} then bakes another {g} trays of {m} {item} each.",
        "{g} [bakers|helpers] bring {m} {item} each[| to help out].",
    ],
    gained: "That is {=} more {item}.",
    lose: &[
        "{A.he} [burns|drops] {n} of them.",
        "{A.he} sells {n} {item} [before lunch|in the first hour].",
        "[The children eat|The neighbors buy|Customers buy] {n} {item}.",
    ],
    lose_part: &[
        "{A.he} [sells|gives away] {part} of [them|the {item}] [before noon|to customers|].",
        "{part} of the {item} are eaten [right away|at breakfast|by the guests].",
    ],
    lost: "[That takes away|Gone are] {=} {item}.",
    double: &["{A.he} keeps baking until the number of {item} {doubles}."],
    now: "[There are now|Now {A} has] {=} {item}.",
    left: "[There are|{A} has] {=} {item} left.",
    ask: &[
        "How many {item} are left?",
        "How many {item} does {A} have [now|at the end of the day]?",
        "[What is|Find] the number of {item} that remain.",
    ],
    split: &[
        "The {item} are [put|packed] into {k} [boxes|bags] evenly. How many are in each?",
        "If {k} [guests|friends] share the rest equally, how many {item} does each one get?",
    ],
    split_line: "Each of the {k} gets {=} {item}.",
    price: &[
        "{A.he} sells the [rest|remaining {item}] for ${k} each. How much [money|] does {A.he} \
         [make|get]?",
        "If each of the {item} that {A.he} has now costs ${k}, how much are they worth together?",
    ],
    price_line: "They are worth {=$}.",
    noise: &[
        "The oven was [bought|repaired] {d} weeks ago.",
        "The [kitchen|bakery] is {d} [meters|steps] from the [park|station].",
        "{A.he} [used|has] {d} cups of flour.",
    ],
};

pub(super) const STALL: Setting = Setting {
    items: nouns![
        "balloon",
        "bracelet",
        "candle",
        "pot",
        "drawing",
        "rose",
        "necklace",
        "bar of soap" / "bars of soap",
        "jar of honey" / "jars of honey",
        "scarf" / "scarves",
        "wooden toy",
        "mask"
    ],
    start: &[
        "{A} [brings|takes] {n} {item} to the [market|fair|craft show].",
        "{A} [made|prepared] {n} {item} [to sell|for the weekend market].",
        "At {A}'s [stall|stand] there are {n} {item}.",
    ],
    start_in_groups: &[
        "{A} brings {g} [boxes|crates] of {m} {item} each to the [market|fair].",
        "{A} made {m} {item} a [day|week] for {g} [days|weeks].",
    ],
    started: "{A} has {=} {item} to begin with.",
    gain: &[
        "{A.he} makes {n} more {item} [overnight|during the break].",
        "A [partner|friend] adds {n} {item}[| to the stall].",
    ],
    gain_in_groups: &[
        "{g} other sellers leave {m} {item} each with {A.him}.",
        "{A.he} unpacks {g} more boxes with {m} {item} in each.",
    ],
    gained: "{A.he} gets {=} more {item}.",
    lose: &[
        "[By noon|In the morning|In the first hour], {A.he} sells {n} [of them|{item}].",
        "{n} {item} [break|are damaged] on the way.",
        "{A.he} gives {n} {item} to [friends|a charity].",
    ],
    lose_part: &[
        "{A.he} sells {part} of the {item} [on Friday|in the afternoon|to one customer].",
        "A [tourist|shopkeeper] buys {part} of [the {item}|what {A.he} has].",
    ],
    lost: "That is {=} {item}.",
    double: &["[Overnight|During the week], {A.he} {doubles} {A.his} stock."],
    now: "{A} now has {=} {item}.",
    left: "{A} has {=} {item} left.",
    ask: &[
        "How many {item} [are left|are unsold|does {A} take home]?",
        "How many {item} does {A} still have?",
    ],
    split: &["{A.he} divides the remaining {item} among {k} [shops|baskets] equally. How many go \
     to each?"],
    split_line: "Each gets {=} {item}.",
    price: &[
        "The {item} {A.he} has now are all sold for ${k} each. How much [do they bring in|money \
         is that]?",
        "How much will {A.he} earn by selling the remaining {item} at ${k} each?",
    ],
    price_line: "They bring in {=$}.",
    noise: &[
        "Renting the stall takes {d} minutes of paperwork.",
        "There are {d} other stalls at the market.",
        "{A} [drove|walked] {d} [miles|minutes] to get there.",
    ],
};

pub(super) const FARM: Setting = Setting {
    items: ANIMALS,
    start: &[
        "{A} [has|keeps|owns] {n} {item}[| on a farm].",
        "There are {n} {item} on {A}'s [farm|land].",
    ],
    start_in_groups: &[
        "{A} has {g} [barns|fields] with {m} {item} in each.",
        "{A} keeps {A.his} {item} in {g} [pens|barns] of {m} [{item}|] each.",
    ],
    started: "{A} [has|starts with] {=} {item}.",
    gain: &[
        "{A.he} buys {n} [more|] {item}[| at the market].",
        "{n} [baby|young] {item} are born[| in spring].",
        "A neighbor gives {A.him} {n} {item}.",
    ],
    gain_in_groups: &[
        "{A.he} buys {g} [pens|groups] of {m} {item} each.",
        "{g} [other farmers|neighbors] sell {A.him} {m} {item} each.",
    ],
    gained: "{A} gets {=} more {item}.",
    lose: &[
        "{A.he} sells {n} [of them|{item}][| at the market].",
        "{n} {item} run away.",
        "{A.he} gives {n} {item} to {A.his} [brother|sister|neighbor|son|daughter].",
    ],
    lose_part: &[
        "{A.he} sells {part} of [them|the {item}].",
        "{A.he} [gives|leaves] {part} of the {item} to a [friend|neighbor].",
    ],
    lost: "That takes away {=} {item}.",
    double: &["[Within a year|After two years], the number of {item} {doubles}."],
    now: "{A} [now has|then has] {=} {item}.",
    left: "{A} has {=} {item} left.",
    ask: &[
        "How many {item} does {A} have [now|left|in the end]?",
        "How many {item} are there [now|in the end]?",
    ],
    split: &["The {item} are put into {k} equal groups. How many {item} are in each group?"],
    split_line: "Each group has {=} {item}.",
    price: &[
        "Feeding one of the {item} costs ${k} a week. How much does it cost to feed all {A} has \
         now?",
        "If each of the {item} left is worth ${k}, how much are they worth together?",
    ],
    price_line: "That is {=$}.",
    noise: &[
        "The farm is {d} [acres large|miles from the city].",
        "{A} has a tractor that is {d} years old.",
        "{A.he} also grows {d} rows of corn.",
    ],
};

pub(super) const MONEY: Setting = Setting {
    items: nouns!["dollar"],
    start: &[
        "{A} has ${n}[| in {A.his} wallet| in the bank| in a piggy bank].",
        "{A} [starts|begins] the week with ${n}.",
        "{A} got ${n} for {A.his} birthday.",
    ],
    start_in_groups: &[
        "{A} [works|helps out] for {g} [hours|days] and gets ${m} for each.",
        "{A} has {g} envelopes with ${m} in each.",
    ],
    started: "{A} has {=$}.",
    gain: &[
        "{A.he} [earns|gets] ${n} [more|] [for washing cars|for babysitting|from {A.his} aunt].",
        "{A.he} [finds|receives|wins] ${n}.",
    ],
    gain_in_groups: &[
        "{A.he} [mows|cleans] {g} [yards|cars] for ${m} each.",
        "{g} [neighbors|relatives] give {A.him} ${m} each.",
    ],
    gained: "{A} gets {=$}.",
    lose: &[
        "{A.he} [spends|pays] ${n} [on|for] [lunch|a book|a movie ticket|shoes|a toy|groceries].",
        "{A.he} gives ${n} to {A.his} [brother|sister|mother|friend].",
        "{A.he} buys a [game|shirt|bag|cake|ball] for ${n}.",
    ],
    lose_part: &[
        "{A.he} spends {part} of [it|the money|{A.his} money][| on clothes| on a gift].",
        "{A.he} [donates|saves|lends a friend] {part} of {A.his} money.",
    ],
    lost: "That is {=$}.",
    double: &["{A.his} [grandfather|father|boss] then {doubles} the money {A.he} has."],
    now: "{A} [now has|then has] {=$}.",
    left: "{A} has {=$} left.",
    ask: &[
        "How much [money|] does {A} have [left|now|in the end]?",
        "How many dollars does {A} have [now|in the end]?",
    ],
    split: &["{A.he} puts equal amounts into {k} [jars|envelopes]. How much goes into each?"],
    split_line: "Each gets {=$}.",
    price: &[
        "{A.his} [brother|friend] has {k} times as much money. How much does that person have?",
    ],
    price_line: "That is {=$}.",
    noise: &[
        "{A} is {d} years old.",
        "{A.his} [wallet|bag] is {d} months old.",
        "{A} walks {d} minutes to the bank.",
    ],
};
