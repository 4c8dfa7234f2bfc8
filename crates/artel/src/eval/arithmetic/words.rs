//! Names, pronouns and nouns.

use super::dice::Dice;

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
#[derive(Debug, Clone)]
pub(super) struct Person {
    /// A name, or the word for a role.
    pub(super) name: String,
    pub(super) gender: Gender,
    /// Whether the name is a role: "a baker" at first and "the baker" from then on.
    pub(super) is_role: bool,
}

impl Person {
    /// Somebody with a common name, or now and then with an invented one: who solves the problem
    /// has to read the name, not to recognise it.
    pub(super) fn named(dice: &mut Dice) -> Person {
        let gender = dice.pick(&[Gender::Feminine, Gender::Masculine]);
        let (names, ends) = match gender {
            Gender::Feminine => (SHE, ["na", "ria", "lia", "sha", "elle", "ta", "mira", "dine"]),
            Gender::Masculine => (HE, ["ren", "ro", "len", "rik", "mon", "ton", "vin", "dor"]),
        };
        let name = if dice.chance(75) {
            dice.pick(names).to_string()
        } else {
            [dice.pick(NAME_STARTS), dice.pick(&["", "", "ri", "la", "ne", "ki"]), dice.pick(&ends)]
                .concat()
        };
        Person { name, gender, is_role: false }
    }

    /// Somebody known by what they do.
    pub(super) fn role(dice: &mut Dice) -> Person {
        let (name, genders) = dice.pick(ROLES);
        Person { name: name.to_string(), gender: dice.pick(genders), is_role: true }
    }

    /// The name at its first mention, or at a later one.
    pub(super) fn mention(&self, known: bool) -> String {
        match (self.is_role, known) {
            (false, _) => self.name.clone(),
            (true, false) => format!("a {}", self.name),
            (true, true) => format!("the {}", self.name),
        }
    }
}

/// A countable thing.
#[derive(Debug)]
pub(super) struct Noun {
    pub(super) one: &'static str,
    pub(super) many: &'static str,
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

/// Names of several cultures.
#[rustfmt::skip]
const SHE: &[&str] = &[
    "Maya", "Aisha", "Yuki", "Sofia", "Priya", "Amina", "Olga", "Ingrid", "Mei", "Fatima", "Lucia",
    "Emma", "Zoe", "Leila", "Ngozi", "Anika", "Sakura", "Elena", "Chiara", "Hannah", "Grace",
    "Carmen", "Nadia", "Zara", "Irina", "Camila", "Linh", "Abena", "Zeynep", "Lakshmi", "Isabel",
    "Clara", "Freya", "Julia", "Kate", "Rosa", "Noor", "Wanjiru", "Tala", "Keiko", "Ruth", "Marta",
    "Dina", "Alice", "Sara", "Mrs. Garcia", "Ms. Okafor", "Aunt Lena", "Mrs. Haddad",
    "Grandma Iris", "Dr. Mehta", "Ms. Larsen", "Coach Kim", "Natalia", "Betty", "Bella", "Chloe",
    "Dalia", "Esther", "Farah", "Gloria", "Helena", "Iman", "Jasmine", "Khadija", "Lea", "Mona",
    "Nina", "Oksana", "Petra", "Rania", "Simone", "Tessa", "Uma", "Vera", "Wendy", "Xiu", "Yara",
    "Mary", "Sarah", "Anna", "Lisa", "Susan", "Laura", "Karen", "Nancy", "Emily", "Sophie",
    "Rachel", "Rebecca", "Linda", "Amy", "Jane", "Lily", "Ella", "Mia", "Ava", "Olivia",
    "Charlotte", "Amelia", "Harper", "Evelyn", "Abigail", "Lucy", "Molly", "Daisy", "Ivy", "Nora",
    "Stella", "Ruby", "Naomi", "Leah", "Tina", "Gina", "Jenny", "Megan", "Paige", "Tracy", "Joy",
    "Hope", "Carla", "Paula", "Monica", "Diana", "Silvia", "Teresa", "Angela", "Maria", "Eva",
    "Ines", "Ana", "Beatriz", "Valentina", "Mariana", "Lena", "Greta", "Heidi", "Astrid", "Sigrid",
    "Katya", "Anya", "Tanya", "Svetlana", "Jana", "Lan", "Hana", "Aiko", "Yuna", "Jia", "Ling",
    "Sunita", "Meera", "Kavita", "Divya", "Asha", "Rina", "Dewi", "Siti", "Nur", "Layla", "Salma",
    "Yasmin", "Amal", "Hiba", "Zainab", "Adaeze", "Ama", "Efua", "Thandi", "Zanele", "Makena",
];

/// Names of several cultures.
#[rustfmt::skip]
const HE: &[&str] = &[
    "Liam", "Omar", "Kenji", "Mateo", "Arjun", "Kwame", "Ivan", "Lars", "Chen", "Ahmed", "Diego",
    "Noah", "Sam", "Tariq", "Emeka", "Rahul", "Hiroshi", "Pavel", "Luca", "Ethan", "James",
    "Carlos", "Samir", "Jamal", "Nikolai", "Andre", "Minh", "Kofi", "Yusuf", "Ravi", "Pedro",
    "Oscar", "Felix", "Hugo", "Ben", "Jack", "Daniel", "Elias", "Tane", "Bilal", "Marco", "Henry",
    "Viktor", "Thabo", "Paul", "Mr. Silva", "Mr. Tanaka", "Uncle Joe", "Mr. Khan", "Coach Reyes",
    "Grandpa Eli", "Dr. Novak", "Mr. Mensah", "Anton", "Bruno", "Caleb", "Dmitri", "Enzo", "Farid",
    "Gabriel", "Hassan", "Idris", "Jonas", "Kai", "Leo", "Milan", "Nils", "Rashid", "Stefan",
    "Tomas", "Wei", "Xavier", "Zane", "John", "Tom", "Bob", "Mike", "David", "Mark", "Peter",
    "Steve", "Kevin", "Brian", "Jason", "Eric", "Adam", "Alex", "Max", "Oliver", "George", "Arthur",
    "Charlie", "Harry", "Jacob", "Lucas", "Logan", "Mason", "Owen", "Isaac", "Nathan", "Toby",
    "Simon", "Martin", "Philip", "Robert", "Richard", "Joseph", "Thomas", "William", "Jim", "Joe",
    "Tim", "Ron", "Ken", "Ted", "Greg", "Sean", "Ryan", "Connor", "Finn", "Patrick", "Luke", "Evan",
    "Dylan", "Cole", "Blake", "Miguel", "Jose", "Juan", "Luis", "Antonio", "Rafael", "Javier",
    "Pablo", "Andres", "Thiago", "Joao", "Giovanni", "Matteo", "Klaus", "Hans", "Otto", "Lukas",
    "Sven", "Erik", "Olaf", "Boris", "Sergei", "Igor", "Yuri", "Jakub", "Marek", "Haruto", "Ren",
    "Takeshi", "Jin", "Hao", "Jun", "Bao", "Raj", "Vikram", "Anil", "Sanjay", "Dev", "Rohan",
    "Imran", "Ali", "Karim", "Khalid", "Nabil", "Amir", "Reza", "Kwesi", "Ade", "Tunde", "Sipho",
    "Juma", "Baraka",
];

/// Beginnings of invented names.
#[rustfmt::skip]
const NAME_STARTS: &[&str] = &[
    "Ka", "Mi", "Jo", "Ra", "Te", "Lu", "Sa", "Do", "Na", "Be", "Ari", "El", "Fi", "Go", "Ha", "Iv",
    "Ja", "Ki", "Lo", "Ma", "No", "Or", "Pe", "Qui", "Ro", "Si", "Ta", "Ul", "Va", "Wi", "Xa", "Yo",
    "Za", "Bri", "Cla", "Dre", "Fro", "Gle", "Hel", "Ji", "Kor", "Lan", "Mar", "Nel", "Osc", "Pri",
    "Ros", "Sty", "Tor", "Vel",
];

/// Roles and who may have them.
#[rustfmt::skip]
const ROLES: &[(&str, &[Gender])] = &[
    ("farmer", BOTH), ("baker", BOTH), ("teacher", BOTH), ("gardener", BOTH), ("shopkeeper", BOTH),
    ("coach", BOTH), ("collector", BOTH), ("student", BOTH), ("chef", BOTH), ("florist", BOTH),
    ("artist", BOTH), ("merchant", BOTH), ("volunteer", BOTH), ("scientist", BOTH),
    ("boy", &[Gender::Masculine]), ("girl", &[Gender::Feminine]), ("man", &[Gender::Masculine]),
    ("woman", &[Gender::Feminine]), ("king", &[Gender::Masculine]), ("queen", &[Gender::Feminine]),
];

const BOTH: &[Gender] = &[Gender::Feminine, Gender::Masculine];

/// Small things that people collect, trade and give away.
#[rustfmt::skip]
pub(super) const KEEPSAKES: &[Noun] = nouns![
    "sticker", "marble", "stamp", "coin", "bead", "postcard", "trading card", "badge", "ribbon",
    "seashell", "button", "toy car", "comic book", "bracelet", "keychain", "magnet", "pebble",
    "crayon", "paper crane", "bookmark", "pin", "figurine", "poster",
    "balloon", "photo", "feather", "dinosaur toy", "toy soldier", "action figure", "bottle cap",
    "crystal", "gem", "leaf"/"leaves", "acorn", "rubber band", "eraser", "pencil", "colored pencil",
    "storybook", "cassette", "record", "doll", "stuffed animal", "card", "baseball card", "ring",
    "patch"/"patches", "fossil", "puzzle piece", "toy block", "ticket stub", "clip", "paper clip",
];

/// Goods priced in whole dollars.
#[rustfmt::skip]
pub(super) const GOODS: &[Noun] = nouns![
    "notebook", "T-shirt", "mug", "book", "puzzle", "candle", "plant", "cap", "scarf"/"scarves",
    "game", "lamp", "towel", "pillow", "basket", "ball", "umbrella", "backpack", "bottle",
    "brush"/"brushes", "folder", "calculator", "toy", "belt", "plate", "vase", "kite", "blanket",
    "sketchbook", "water bottle", "phone case", "pair of socks"/"pairs of socks",
    "lunch box"/"lunch boxes",
    "pen", "pencil case", "ruler", "eraser", "marker", "stapler", "chair", "desk", "rug", "mirror",
    "clock", "radio", "speaker", "keyboard", "charger", "helmet", "jacket", "sweater",
    "dress"/"dresses", "hat", "shirt", "tie", "wallet", "watch"/"watches", "necklace", "bracelet",
    "frying pan", "pot", "bowl", "spoon", "fork", "knife"/"knives", "toothbrush"/"toothbrushes",
    "soap bar", "flower pot", "shovel", "hammer", "rope", "flashlight", "tent", "ticket",
    "magazine", "comic", "album", "DVD", "board game", "doll", "teddy bear",
    "paintbrush"/"paintbrushes", "pack of gum"/"packs of gum", "bag of chips"/"bags of chips",
    "bottle of juice"/"bottles of juice", "box of crayons"/"boxes of crayons",
];

/// Cheap things to eat or drink.
#[rustfmt::skip]
pub(super) const SNACKS: &[Noun] = nouns![
    "sandwich"/"sandwiches", "muffin", "bagel", "cupcake", "burrito", "salad", "pizza", "taco",
    "pie", "smoothie", "doughnut", "coffee", "ice cream", "pretzel", "juice", "dumpling",
    "samosa", "waffle", "croissant", "bowl of soup"/"bowls of soup",
    "hot dog", "hamburger", "slice of cake"/"slices of cake", "slice of pizza"/"slices of pizza",
    "cookie", "soda", "bottle of water"/"bottles of water", "wrap", "noodle soup", "milkshake",
    "pancake", "cup of tea"/"cups of tea", "bag of popcorn"/"bags of popcorn", "candy bar",
    "granola bar", "egg roll", "lollipop",
];

/// Fruit and vegetables.
#[rustfmt::skip]
pub(super) const PRODUCE: &[Noun] = nouns![
    "apple", "orange", "mango"/"mangoes", "pear", "peach"/"peaches", "lemon", "tomato"/"tomatoes",
    "potato"/"potatoes", "carrot", "pumpkin", "melon", "cucumber", "onion", "plum", "banana",
    "pineapple", "fig", "avocado", "coconut", "turnip", "lime", "beet",
    "strawberry"/"strawberries", "cherry"/"cherries", "grape", "watermelon", "pepper", "cabbage",
    "radish"/"radishes", "pea", "bean", "kiwi", "papaya", "grapefruit", "apricot",
    "blueberry"/"blueberries", "walnut", "eggplant", "squash"/"squashes", "olive", "nectarine",
];

/// What a bakery or a kitchen makes by the tray.
#[rustfmt::skip]
pub(super) const BAKES: &[Noun] = nouns![
    "cookie", "muffin", "roll", "cupcake", "brownie", "biscuit", "scone", "bagel", "tart",
    "doughnut", "pastry"/"pastries", "bun", "macaron", "pretzel", "croissant", "empanada",
    "pancake", "waffle", "pie", "loaf of bread"/"loaves of bread", "cake", "sandwich"/"sandwiches",
    "pizza", "dumpling", "cracker",
];

/// Farm animals.
#[rustfmt::skip]
pub(super) const ANIMALS: &[Noun] = nouns![
    "cow", "goat", "horse", "pig", "duck", "hen", "rabbit", "llama", "donkey", "turkey",
    "pony"/"ponies",
    "chicken", "sheep"/"sheep", "goose"/"geese", "dog", "cat", "bee", "camel", "buffalo"/"buffalo",
    "ostrich"/"ostriches",
];

/// Things with which things are carried.
#[rustfmt::skip]
pub(super) const CONTAINERS: &[Noun] = nouns![
    "box"/"boxes", "bag", "basket", "jar", "crate", "tray", "tin", "packet", "bucket", "carton",
];
