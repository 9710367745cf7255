//! Captions as data sets have them: COCO's JSON, JSON lines, tar shards of webdataset and img2dataset.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::random::keyed;
use scalebench_metrics::{ImageSet, Shards};
use serde::Deserialize;
use serde_json::Value;

use crate::experiment::yaml::ensure_one_of;
use crate::host::digest;

/// What COCO's caption files hold, as far as it matters here.
#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    #[serde(default)]
    id: u64,
    caption: Option<String>,
}

/// One caption of each image. The seed keys both the order of the images and the choice among an image's captions; neither depends on
/// the order in the file.
pub(crate) fn coco(bytes: &[u8], seed: u64) -> Result<Vec<String>> {
    let expected = "expected COCO's captions, as in captions_val2014.json: `images` with `id`, `annotations` with `image_id` and `caption`";
    let Coco { images, annotations } = serde_json::from_slice(bytes).context(expected)?;
    let mut captions: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
    for (i, Annotation { image_id, id, caption }) in annotations.into_iter().enumerate() {
        let caption = caption.with_context(|| format!("annotations[{i}] has no caption; {expected}"))?;
        captions.entry(image_id).or_default().push((id, caption));
    }
    let mut order: Vec<u64> = images.iter().map(|image| image.id).collect();
    order.sort_unstable();
    if let Some(twice) = order.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("image {} stands there twice", twice[0]);
    }
    ensure!(!order.is_empty(), "found no images; {expected}");
    order.sort_by_key(|id| (keyed(&[seed, *id, 0]), *id));
    let choose = |id: u64| -> Result<String> {
        let of_image = captions.get_mut(&id).with_context(|| format!("image {id} has no caption"))?;
        of_image.sort();
        let (_, caption) = &of_image[(keyed(&[seed, id, 1]) % of_image.len() as u64) as usize];
        prompt(caption).with_context(|| format!("image {id}"))
    };
    order.into_iter().map(choose).collect()
}

/// A caption as a prompt.
fn prompt(caption: &str) -> Result<String> {
    let caption = caption.trim();
    ensure!(!caption.is_empty(), "expected a caption, found an empty one");
    Ok(caption.to_owned())
}

/// The text under a key of a JSON object.
fn text_of(bytes: &[u8], key: &str) -> Result<String> {
    let object: serde_json::Map<String, Value> = serde_json::from_slice(bytes).context("expected a JSON object")?;
    ensure_one_of("key", key, &object.keys().collect::<Vec<_>>())?;
    match &object[key] {
        Value::String(text) => prompt(text).with_context(|| key.to_owned()),
        other => bail!("{key}: expected text, found {other}"),
    }
}

/// One prompt a line, under a key of the line's JSON object.
pub(crate) fn json_lines(bytes: &[u8], key: Option<&str>) -> Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).context("expected UTF-8 text")?;
    let key = key.context("expected `column`, the key that holds the prompt")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> =
        lines.map(|(i, line)| text_of(line.as_bytes(), key).with_context(|| format!("line {}", i + 1))).collect::<Result<_>>()?;
    ensure!(!prompts.is_empty(), "expected one JSON object a line, found none");
    Ok(prompts)
}

/// The captions of tar shards, one a sample, in the order of [`Shards`]: the `.txt` files, or a key of the `.json` files. With them the
/// digest of all shards.
pub(crate) fn shards(path: &Path, key: Option<&str>) -> Result<(Vec<String>, String)> {
    let ending = if key.is_some() { "json" } else { "txt" };
    let found = Shards::with_ending(path, ending)?;
    ensure!(found.len() > 0, "expected a .{ending} file for each sample, found none");
    let one = |i: usize| -> Result<String> {
        let bytes = found.read(i)?;
        let text = match key {
            Some(key) => text_of(&bytes, key),
            None => std::str::from_utf8(&bytes).context("expected UTF-8 text").and_then(prompt),
        };
        text.with_context(|| found.name(i).to_owned())
    };
    let prompts = (0..found.len()).map(one).collect::<Result<_>>()?;
    Ok((prompts, digest::of_files(found.files())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COCO: &str = r#"{"info": {}, "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4}, {"id": 7}], "annotations": [
        {"image_id": 9, "id": 1, "caption": "a cat"}, {"image_id": 4, "id": 2, "caption": " a dog\n"}, {"image_id": 9, "id": 3, "caption": "two cats"},
        {"image_id": 7, "id": 4, "caption": "a bus"}, {"image_id": 9, "id": 5, "caption": "cats"}]}"#;

    #[test]
    fn coco_gives_one_caption_an_image_by_the_seed_alone() {
        let found = coco(COCO.as_bytes(), 3).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found.contains(&"a dog".to_owned()) && found.contains(&"a bus".to_owned()));
        let mut value: Value = serde_json::from_str(COCO).unwrap();
        for key in ["images", "annotations"] {
            value[key].as_array_mut().unwrap().reverse();
        }
        assert_eq!(coco(value.to_string().as_bytes(), 3).unwrap(), found, "the file's order does not matter");
        let all: Vec<Vec<String>> = (0..64).map(|seed| coco(COCO.as_bytes(), seed).unwrap()).collect();
        for caption in ["a cat", "two cats", "cats"] {
            let n = all.iter().filter(|found| found.iter().any(|found| found == caption)).count();
            assert!((10..35).contains(&n), "{caption} is chosen {n} times of 64, expected a third");
        }
        let firsts = all.iter().filter(|found| found[0] == "a dog").count();
        assert!((10..35).contains(&firsts), "{firsts} of 64 begin with one of three");
    }

    #[test]
    fn what_is_no_captions_is_refused() {
        let no_caption = r#"{"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 1, "bbox": [0, 0, 1, 1], "category_id": 3}]}"#;
        for (text, fragments) in [
            (no_caption, &["annotations[0] has no caption", "captions_val2014.json"][..]),
            (r#"{"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 1, "caption": "x"}]}"#, &["image 2 has no caption"]),
            (r#"{"images": [{"id": 1}, {"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}"#, &["image 1 stands there twice"]),
            (r#"{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": " "}]}"#, &["image 1", "an empty one"]),
            (r#"{"images": [], "annotations": []}"#, &["found no images"]),
            ("[]", &["expected COCO's captions"]),
        ] {
            let message = format!("{:#}", coco(text.as_bytes(), 0).unwrap_err());
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{text}: {message}");
        }
        for (text, key, fragments) in [
            (
                "{\"caption\": \"a\"}\n{\"captoin\": \"b\"}\n",
                Some("caption"),
                &["line 2", "no key `caption`", "did you mean `captoin`?"][..],
            ),
            ("{\"caption\": 5}\n", Some("caption"), &["line 1", "caption: expected text, found 5"]),
            ("{\"caption\": \n", Some("caption"), &["line 1", "expected a JSON object"]),
            ("\n", Some("caption"), &["found none"]),
            ("{\"caption\": \"a\"}\n", None, &["expected `column`"]),
        ] {
            let message = format!("{:#}", json_lines(text.as_bytes(), key).unwrap_err());
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{text}: {message}");
        }
        let lines = "{\"caption\": \"a cat\", \"n\": 1}\n\n{\"caption\": \" ein Hund \"}\n";
        assert_eq!(json_lines(lines.as_bytes(), Some("caption")).unwrap(), ["a cat", "ein Hund"]);
    }
}
