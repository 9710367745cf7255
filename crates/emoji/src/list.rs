//! Which emoji are in the set, and under which name and group.
//!
//! Near-duplicates would dominate the set (five skin tones times three genders of one drawing), so:
//!
//! 1. skin tones: only the default tone (the `emojis` crate lists tones apart);
//! 2. gender: sequences that add a gender sign to a neutral emoji are left out, and so are the
//!    "man …"/"woman …" forms whose neutral "person" form exists;
//! 3. couples and families made of several people: left out;
//! 4. clock faces: only the full hours;
//! 5. flags and symbols: left out (258 flags are one rectangle in different colours, and most
//!    symbols are lettering in a coloured square).
//!
//! ```
//! use scalebench_emoji::list::GROUPS;
//! use scalebench_emoji::{Emoji, emojis, prompt_order};
//! let emojis: &[Emoji] = emojis();
//! assert!(emojis.iter().enumerate().all(|(i, emoji)| emoji.index == i && GROUPS.contains(&emoji.group)));
//! // Prompts name each of them once before any is named again.
//! let mut order = prompt_order(7);
//! order.sort_unstable();
//! assert!(order.into_iter().eq(0..emojis.len()));
//! ```

use std::sync::OnceLock;

/// One emoji of the set.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emoji {
    /// Position in [`emojis`](fn@crate::emojis); stable for a given version of this crate.
    pub index: usize,
    /// The Unicode sequence.
    pub text: &'static str,
    /// The CLDR short name, lower case. It is also the prompt.
    pub name: String,
    /// The CLDR group, for example `animals & nature`, lower case.
    pub group: &'static str,
    pub(crate) svg: &'static str,
}

/// The groups of the set, in CLDR order. [`Emoji::group`] is one of them.
pub const GROUPS: [&str; 7] =
    ["smileys & emotion", "people & body", "animals & nature", "food & drink", "travel & places", "activities", "objects"];

fn group_name(group: emojis::Group) -> Option<&'static str> {
    use emojis::Group::*;
    Some(match group {
        SmileysAndEmotion => GROUPS[0],
        PeopleAndBody => GROUPS[1],
        AnimalsAndNature => GROUPS[2],
        FoodAndDrink => GROUPS[3],
        TravelAndPlaces => GROUPS[4],
        Activities => GROUPS[5],
        Objects => GROUPS[6],
        Symbols | Flags => return None,
    })
}

const ZWJ: char = '\u{200d}';
const ADULTS_AND_CHILDREN: [char; 6] = ['👨', '👩', '👦', '👧', '🧑', '🧒'];

fn is_near_duplicate(e: &emojis::Emoji) -> bool {
    let parts: Vec<&str> = e.as_str().split(ZWJ).collect();
    let gender_sign = parts.iter().skip(1).any(|p| p.starts_with('♂') || p.starts_with('♀'));
    let gendered_role = parts.len() > 1
        && (parts[0].starts_with('👨') || parts[0].starts_with('👩'))
        && emojis::get(&e.as_str().replacen(parts[0], "🧑", 1)).is_some();
    let n_people = parts.iter().filter(|part| part.starts_with(ADULTS_AND_CHILDREN)).count();
    let half_hour = e.name().ends_with("-thirty");
    gender_sign || gendered_role || n_people > 1 || half_hour
}

/// Every emoji of the set, in CLDR order.
///
/// Example: [this module](self).
pub fn emojis() -> &'static [Emoji] {
    static LIST: OnceLock<Vec<Emoji>> = OnceLock::new();
    LIST.get_or_init(|| {
        let mut list = Vec::new();
        for e in emojis::iter().filter(|e| !is_near_duplicate(e)) {
            let (Some(group), Some(asset)) = (group_name(e.group()), twemoji_assets::svg::SvgTwemojiAsset::from_emoji(e.as_str())) else {
                continue;
            };
            list.push(Emoji { index: list.len(), text: e.as_str(), name: e.name().to_lowercase(), group, svg: asset.data.0 });
        }
        list
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_every_group_is_present() {
        let names: HashSet<_> = emojis().iter().map(|e| &e.name).collect();
        assert_eq!(names.len(), emojis().len());
        for group in GROUPS {
            assert!(emojis().iter().any(|e| e.group == group), "{group}");
        }
    }

    #[test]
    fn near_duplicates_are_left_out() {
        let has = |name: &str| emojis().iter().any(|e| e.name == name);
        assert!(has("firefighter") && !has("man firefighter") && !has("woman firefighter"));
        assert!(has("person running") && !has("man running"));
        assert!(has("three o’clock") && !has("three-thirty"));
        assert!(!emojis().iter().any(|e| e.name.contains("skin tone") || e.name.starts_with("flag:")));
    }
}
