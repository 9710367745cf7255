//! Names of files that another program makes, with places for what sets them apart.

/// What stands in braces in a pattern.
pub(crate) const PLACES: [&str; 6] = ["model", "scale", "width", "height", "index", "seed"];

/// Whether a pattern names every image; else it is a folder, whose sorted files are the images.
pub(crate) fn names_each(pattern: &str) -> bool {
    ["{index", "{seed"].iter().any(|place| pattern.contains(place))
}

/// The folder in front of a pattern's first placeholder.
pub(crate) fn root(pattern: &str) -> &str {
    let fixed = pattern.split('{').next().unwrap_or_default();
    match fixed.len() == pattern.len() && !names_each(pattern) {
        true => pattern,
        false => fixed.rfind('/').map_or("", |at| &fixed[..=at]),
    }
}
