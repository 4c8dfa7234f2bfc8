//! Names, pronouns and nouns.

/// Chooses the pronouns of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gender {
    Feminine,
    Masculine,
}

impl Gender {
    pub(super) fn he(self) -> &'static str {
        if self == Gender::Feminine { "she" } else { "he" }
    }

    pub(super) fn him(self) -> &'static str {
        if self == Gender::Feminine { "her" } else { "him" }
    }

    pub(super) fn his(self) -> &'static str {
        if self == Gender::Feminine { "her" } else { "his" }
    }
}

/// Someone in a story.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) gender: Gender,
}

/// A countable thing.
#[derive(Debug)]
pub(super) struct Noun {
    pub(super) one: &'static str,
    pub(super) many: &'static str,
}

const fn she(name: &'static str) -> Person {
    Person { name, gender: Gender::Feminine }
}

const fn he(name: &'static str) -> Person {
    Person { name, gender: Gender::Masculine }
}

/// Makes a list of nouns: `s` where the plural adds that letter, `(one, many)` elsewhere.
macro_rules! nouns {
    ($($one:literal $(/ $many:literal)?),* $(,)?) => {
        &[$(nouns!(@one $one $(, $many)?)),*]
    };
    (@one $one:literal) => { $crate::eval::arithmetic::words::Noun {
        one: $one, many: concat!($one, "s") } };
    (@one $one:literal, $many:literal) => { $crate::eval::arithmetic::words::Noun {
        one: $one, many: $many } };
}
pub(super) use nouns;

#[rustfmt::skip]
pub(super) const PEOPLE: &[Person] = &[
    she("Maya"), she("Aisha"), she("Yuki"), she("Sofia"), she("Priya"), she("Amina"), she("Olga"),
    she("Ingrid"), she("Mei"), she("Fatima"), she("Lucia"), she("Emma"), she("Zoe"), she("Leila"),
    she("Ngozi"), she("Anika"), she("Sakura"), she("Elena"), she("Chiara"), she("Hannah"),
    she("Grace"), she("Carmen"), she("Nadia"), she("Zara"), she("Irina"), she("Camila"),
    she("Linh"), she("Abena"), she("Zeynep"), she("Lakshmi"), she("Isabel"), she("Clara"),
    she("Freya"), she("Julia"), she("Kate"), she("Rosa"), she("Noor"), she("Wanjiru"),
    she("Tala"), she("Keiko"), she("Ruth"), she("Marta"), she("Dina"), she("Alice"), she("Sara"),
    he("Liam"), he("Omar"), he("Kenji"), he("Mateo"), he("Arjun"), he("Kwame"), he("Ivan"),
    he("Lars"), he("Chen"), he("Ahmed"), he("Diego"), he("Noah"), he("Sam"), he("Tariq"),
    he("Emeka"), he("Rahul"), he("Hiroshi"), he("Pavel"), he("Luca"), he("Ethan"), he("James"),
    he("Carlos"), he("Samir"), he("Jamal"), he("Nikolai"), he("Andre"), he("Minh"), he("Kofi"),
    he("Yusuf"), he("Ravi"), he("Pedro"), he("Oscar"), he("Felix"), he("Hugo"), he("Ben"),
    he("Jack"), he("Daniel"), he("Elias"), he("Tane"), he("Bilal"), he("Marco"), he("Henry"),
    he("Viktor"), he("Thabo"), he("Paul"), he("Mr. Silva"), he("Mr. Tanaka"), he("Uncle Joe"),
    he("Mr. Khan"), he("Coach Reyes"), he("Grandpa Eli"), he("Dr. Novak"), he("Mr. Mensah"),
    he("Anton"), he("Bruno"), he("Caleb"), he("Dmitri"), he("Enzo"), he("Farid"), he("Gabriel"),
    he("Hassan"), he("Idris"), he("Jonas"), he("Kai"), he("Leo"), he("Milan"), he("Nils"),
    he("Rashid"), he("Stefan"), he("Tomas"), he("Wei"), he("Xavier"), he("Zane"),
    she("Mrs. Garcia"), she("Ms. Okafor"), she("Aunt Lena"), she("Mrs. Haddad"),
    she("Grandma Iris"), she("Dr. Mehta"), she("Ms. Larsen"), she("Coach Kim"),
    she("Natalia"), she("Betty"),
    she("Bella"), she("Chloe"), she("Dalia"), she("Esther"), she("Farah"), she("Gloria"),
    she("Helena"), she("Iman"), she("Jasmine"), she("Khadija"), she("Lea"), she("Mona"),
    she("Nina"), she("Oksana"), she("Petra"), she("Rania"), she("Simone"), she("Tessa"),
    she("Uma"), she("Vera"), she("Wendy"), she("Xiu"), she("Yara"),
];

/// Small things that people collect, trade and give away.
#[rustfmt::skip]
pub(super) const KEEPSAKES: &[Noun] = nouns![
    "sticker", "marble", "stamp", "coin", "bead", "postcard", "trading card", "badge", "ribbon",
    "seashell", "button", "toy car", "comic book", "bracelet", "keychain", "magnet", "pebble",
    "crayon", "paper crane", "bookmark", "pin", "figurine", "poster",
];

/// Goods priced in whole dollars.
#[rustfmt::skip]
pub(super) const GOODS: &[Noun] = nouns![
    "notebook", "T-shirt", "mug", "book", "puzzle", "candle", "plant", "cap", "scarf"/"scarves",
    "game", "lamp", "towel", "pillow", "basket", "ball", "umbrella", "backpack", "bottle",
    "brush"/"brushes", "folder", "calculator", "toy", "belt", "plate", "vase", "kite", "blanket",
    "sketchbook", "water bottle", "phone case", "pair of socks"/"pairs of socks",
    "lunch box"/"lunch boxes",
];

/// Cheap things to eat or drink.
#[rustfmt::skip]
pub(super) const SNACKS: &[Noun] = nouns![
    "sandwich"/"sandwiches", "muffin", "bagel", "cupcake", "burrito", "salad", "pizza", "taco",
    "pie", "smoothie", "doughnut", "coffee", "ice cream", "pretzel", "juice", "dumpling",
    "samosa", "waffle", "croissant", "bowl of soup"/"bowls of soup",
];

/// Fruit and vegetables.
#[rustfmt::skip]
pub(super) const PRODUCE: &[Noun] = nouns![
    "apple", "orange", "mango"/"mangoes", "pear", "peach"/"peaches", "lemon", "tomato"/"tomatoes",
    "potato"/"potatoes", "carrot", "pumpkin", "melon", "cucumber", "onion", "plum", "banana",
    "pineapple", "fig", "avocado", "coconut", "turnip", "lime", "beet",
];

/// What a bakery or a kitchen makes by the tray.
#[rustfmt::skip]
pub(super) const BAKES: &[Noun] = nouns![
    "cookie", "muffin", "roll", "cupcake", "brownie", "biscuit", "scone", "bagel", "tart",
    "doughnut", "pastry"/"pastries", "bun", "macaron", "pretzel", "croissant", "empanada",
];

/// Farm animals.
#[rustfmt::skip]
pub(super) const ANIMALS: &[Noun] = nouns![
    "cow", "goat", "horse", "pig", "duck", "hen", "rabbit", "llama", "donkey", "turkey",
    "pony"/"ponies",
];

/// Things with which things are carried.
#[rustfmt::skip]
pub(super) const CONTAINERS: &[Noun] = nouns![
    "box"/"boxes", "bag", "basket", "jar", "crate", "tray", "tin", "packet", "bucket", "carton",
];
