//! Which emoji are in the set, and under which name and group. The rules of what is left out are `build.rs`'s.
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

use std::io::Read;
use std::sync::OnceLock;

pub use crate::groups::GROUPS;

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

/// Every emoji of the set, in CLDR order.
///
/// Example: [this module](self).
pub fn emojis() -> &'static [Emoji] {
    static LIST: OnceLock<Vec<Emoji>> = OnceLock::new();
    LIST.get_or_init(|| {
        let mut records = String::new();
        let packed: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/emoji.zlib"));
        flate2::read::ZlibDecoder::new(packed).read_to_string(&mut records).expect("the build script packed text");
        let mut fields = records.leak().split_terminator('\0');
        let mut list = Vec::new();
        while let (Some(text), Some(name), Some(group), Some(svg)) = (fields.next(), fields.next(), fields.next(), fields.next()) {
            list.push(Emoji { index: list.len(), text, name: name.to_owned(), group, svg });
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
    fn the_set_is_the_one_that_the_pocket_networks_know() {
        assert_eq!(emojis().len(), 1072);
        assert!(
            emojis().iter().enumerate().all(|(i, e)| e.index == i && GROUPS.contains(&e.group) && e.svg.trim_end().ends_with("</svg>"))
        );
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
