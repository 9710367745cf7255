//! The names of the groups: a file of its own, as the build script needs them too.

/// The groups of the set, in CLDR order. [`Emoji::group`](crate::Emoji::group) is one of them.
pub const GROUPS: [&str; 7] =
    ["smileys & emotion", "people & body", "animals & nature", "food & drink", "travel & places", "activities", "objects"];
