//! Word problems in the manner of those that the bundled model was trained on, whose solutions it is
//! sure of: what it makes of any other text are near ties.

/// Problem number `index`, of 55 to 95 tokens. Its solution has more than 100.
pub fn problem(index: usize) -> String {
    let (form, turn) = (index % FORMS.len(), index / FORMS.len());
    let names =
        [["Lucy", "Bao", "Farid"], ["Clara", "Javier", "Greg"], ["Natalia", "Amir", "Juma"]];
    let [first, second, third] = names[turn % names.len()];
    let (a, b, c) = (60 + index * 7 % 40, 3 + index * 5 % 17, 3 + index % 5);
    let quantities = [("{a}", a), ("{2a}", 2 * a), ("{4c}", 4 * c), ("{b}", b), ("{c}", c)];
    let text = FORMS[form].replace("{A}", first).replace("{B}", second).replace("{C}", third);
    quantities.iter().fold(text, |text, (key, value)| text.replace(key, &value.to_string()))
}

/// Stories of two to four steps. `{a}` is by far larger than `{b}` and `{c}`.
const FORMS: [&str; 7] = [
    "{A} caught {b} fewer trout than {B}. {C} caught {c} fewer trout than {A}. {B} caught {a} trout. \
     How many trout did the friends catch together?",
    "{A} planted {a} trees in April, and then she planted {b} fewer trees in May. In June, she planted \
     {c} times as many trees as in May. How many trees did {A} plant in total?",
    "Suppose the first farm has {a} donkeys. The second farm has {b} more donkeys than the first farm. \
     The third farm has {c} more donkeys than the second farm. How many donkeys are there in total?",
    "{A} took {a} photos. {B} took {c} times as many photos as {A}. {C} took {b} fewer than four times \
     as many photos as {A}. How many more photos did {C} take than {A}?",
    "We know that the red box has {2a} feathers. The blue box has half as many feathers as the red box. \
     The green box, in turn, has {b} more than four times as many feathers as the blue box. How many \
     feathers does the green box have?",
    "In the first week, {A} washed {a} dishes. In the second week, she washed {b} fewer dishes than in \
     the first week. Her class has {4c} students. In the third week, she washed {c} more dishes than in \
     the second week. How many dishes did {A} wash in that time?",
    "In a library there are {4c} shelves, and each shelf holds {b} picture books. There are {a} \
     computers in the reading room. Then 25% of the picture books are moved to another branch. Thanks \
     to a grant, the number of picture books doubles. How many picture books are in the library now?",
];
