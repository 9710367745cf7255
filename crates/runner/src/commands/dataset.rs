//! `scalebench dataset`

use std::io::Write;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use scalebench_emoji::{Split, emojis, prompt_order, render};
use scalebench_metrics::Image;

use crate::cli::{Dataset, SplitName};
use crate::experiment::resolve::MOST_IMAGES;
use crate::run::png;
use crate::run::store::write_file;

/// Largest side of an image.
const LARGEST: u32 = 1 << 14;

/// Emoji rendered at once; bounds the memory.
const CHUNK: usize = 64;

pub(super) fn run(args: &Dataset) -> Result<()> {
    ensure!((1..=MOST_IMAGES).contains(&args.views), "--views: expected 1 to {MOST_IMAGES}, found {}", args.views);
    ensure!((1..=LARGEST).contains(&args.size), "--size: expected 1 to {LARGEST}, found {}", args.size);
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    if args.png { write_png(args) } else { write_bytes(args) }
}

fn split(args: &Dataset) -> Split {
    match args.split {
        SplitName::Train => Split::Train,
        SplitName::Reference => Split::Reference,
    }
}

/// `views` images in the order in which a sweep takes its reference images.
fn write_png(args: &Dataset) -> Result<()> {
    let order = prompt_order(0);
    let side = args.size as usize;
    (0..args.views).into_par_iter().try_for_each(|i| {
        let emoji = &emojis()[order[i % order.len()]];
        let rgb = render(emoji, split(args).placement(emoji, i / order.len()), args.size, args.size)?;
        let image = Image::new(side, side, rgb)?;
        write_file(&args.out.join(format!("{i:06}.png")), &png::encode(&image, None)?)
    })
}

/// All emoji × views as raw bytes, `(emoji, view, height, width, 3)`, for training scripts.
fn write_bytes(args: &Dataset) -> Result<()> {
    let names: String = emojis().iter().map(|emoji| format!("{}\t{}\t{}\n", emoji.text, emoji.name, emoji.group)).collect();
    write_file(&args.out.join("names.tsv"), names.as_bytes())?;
    let path = args.out.join("images.u8");
    let temporary = args.out.join(".images.u8.tmp");
    let context = || format!("cannot write {}", path.display());
    let mut file = std::fs::File::create(&temporary).with_context(context)?;
    for chunk in emojis().chunks(CHUNK) {
        let images = chunk.par_iter().map(|emoji| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            for view in 0..args.views {
                bytes.extend(render(emoji, split(args).placement(emoji, view), args.size, args.size)?);
            }
            Ok(bytes)
        });
        for bytes in images.collect::<Result<Vec<_>>>()? {
            file.write_all(&bytes).with_context(context)?;
        }
    }
    file.sync_all().with_context(context)?;
    std::fs::rename(&temporary, &path).with_context(context)?;
    let split = match args.split {
        SplitName::Train => "train",
        SplitName::Reference => "reference",
    };
    // Written last: who finds it finds whole images.
    let description = serde_json::json!({ "size": args.size, "views": args.views, "split": split });
    write_file(&args.out.join("dataset.json"), format!("{description}\n").as_bytes())
}
