//! Picks the drawings that travel with the crate, and packs them.
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
//! What is left is written as records of four fields, each ended by a zero byte: Unicode sequence, CLDR short name in
//! lower case, CLDR group, SVG; deflated, a tenth of what the assets take.

#![allow(clippy::print_stdout, reason = "a build script talks to cargo on stdout")]

use std::io::Write;
use std::path::Path;

use groups::GROUPS;

#[path = "src/groups.rs"]
#[allow(unreachable_pub, reason = "the crate's own module is public")]
mod groups;

const ZWJ: char = '\u{200d}';
const ADULTS_AND_CHILDREN: [char; 6] = ['👨', '👩', '👦', '👧', '🧑', '🧒'];

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/groups.rs");
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    for emoji in emojis::iter().filter(|emoji| !is_near_duplicate(emoji)) {
        let asset = twemoji_assets::svg::SvgTwemojiAsset::from_emoji(emoji.as_str());
        let (Some(group), Some(asset)) = (group_name(emoji.group()), asset) else { continue };
        for field in [emoji.as_str(), &emoji.name().to_lowercase(), group, asset.data.0] {
            assert!(!field.contains('\0'), "{}", emoji.name());
            packed.write_all(field.as_bytes())?;
            packed.write_all(&[0])?;
        }
    }
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("cargo sets OUT_DIR"))?;
    std::fs::write(Path::new(&out).join("emoji.zlib"), packed.finish()?)
}

fn group_name(group: emojis::Group) -> Option<&'static str> {
    use emojis::Group::*;
    let place = match group {
        SmileysAndEmotion => 0,
        PeopleAndBody => 1,
        AnimalsAndNature => 2,
        FoodAndDrink => 3,
        TravelAndPlaces => 4,
        Activities => 5,
        Objects => 6,
        Symbols | Flags => return None,
    };
    Some(GROUPS[place])
}

fn is_near_duplicate(emoji: &emojis::Emoji) -> bool {
    let parts: Vec<&str> = emoji.as_str().split(ZWJ).collect();
    let gender_sign = parts.iter().skip(1).any(|p| p.starts_with('♂') || p.starts_with('♀'));
    let gendered_role = parts.len() > 1
        && (parts[0].starts_with('👨') || parts[0].starts_with('👩'))
        && emojis::get(&emoji.as_str().replacen(parts[0], "🧑", 1)).is_some();
    let n_people = parts.iter().filter(|part| part.starts_with(ADULTS_AND_CHILDREN)).count();
    let half_hour = emoji.name().ends_with("-thirty");
    gender_sign || gendered_role || n_people > 1 || half_hour
}
