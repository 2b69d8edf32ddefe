//! Free text: names, reasons, references, notes.

use std::ops::RangeInclusive;

use crate::Invalid;

/// Characters that are invisible although they are neither white space nor control characters: Unicode's `Default_Ignorable_Code_Point`
/// (zero-width and direction marks, fillers, variation selectors, tags) and the empty Braille cell.
pub const INVISIBLE: [RangeInclusive<char>; 18] = [
    '\u{AD}'..='\u{AD}',
    '\u{34F}'..='\u{34F}',
    '\u{61C}'..='\u{61C}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{200B}'..='\u{200F}',
    '\u{202A}'..='\u{202E}',
    '\u{2060}'..='\u{206F}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FEFF}'..='\u{FEFF}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{FFF0}'..='\u{FFF8}',
    '\u{1BCA0}'..='\u{1BCA3}',
    '\u{1D173}'..='\u{1D17A}',
    '\u{E0000}'..='\u{E0FFF}',
];

/// Whether the text has a visible character: not white space (Unicode's `White_Space`), not a control character and not one
/// of [`INVISIBLE`].
pub fn is_visible(text: &str) -> bool {
    text.chars()
        .any(|c| !c.is_whitespace() && !c.is_control() && !INVISIBLE.iter().any(|invisible| invisible.contains(&c)))
}

/// The longest line, in characters.
pub const MAX_LINE: usize = 200;
/// What a line must be, in a sentence for the caller; see [`is_line`].
pub const LINE_RULE: &str = "must be 1 to 200 characters, some of them visible, none a control character";

/// Whether it is one line of readable text: visible, at most `max_characters`, none of them a control character.
pub fn is_line(text: &str, max_characters: usize) -> bool {
    text.chars().count() <= max_characters && !text.chars().any(char::is_control) && is_visible(text)
}

/// Checks that the value of `field` is one line of at most [`MAX_LINE`] characters.
///
/// # Errors
/// [`Invalid`] with [`LINE_RULE`].
pub fn check_line(field: &'static str, text: &str) -> Result<(), Invalid> {
    if is_line(text, MAX_LINE) { Ok(()) } else { Err(Invalid::new(field, LINE_RULE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_blanks_and_invisible_characters_is_not_visible() {
        for text in [
            "",
            "   ",
            "\t",
            "\u{A0}",
            "\u{3000}\u{2003}",
            "\u{200B}",
            "\u{2028}",
            "\u{FEFF} \u{AD}",
            "\u{202E}",
            "\u{2800}",
            "\u{3164}",
            "\u{E0020}\u{E007F}",
            "\u{FE0F}",
        ] {
            assert!(!is_visible(text) && !is_line(text, 200), "{text:?}");
        }
        // Joiners and direction marks are fine beside visible characters.
        for text in ["a", " a ", "é", "名前", "👩\u{200D}💻", "❤\u{FE0F}", "م\u{200C}ی", "-"] {
            assert!(is_line(text, 200), "{text:?}");
        }
    }

    #[test]
    fn a_line_has_its_length_in_characters_and_no_control_character() {
        assert!(is_line(&"ü".repeat(200), 200));
        assert!(!is_line(&"ü".repeat(201), 200));
        for text in ["a\n", "a\u{0}b", "\u{85}a", "a\u{7F}"] {
            assert!(is_visible(text) && !is_line(text, 200), "{text:?}");
        }
    }
}
