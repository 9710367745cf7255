//! `scalebench dataset`

use std::io::Write;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use scalebench_emoji::{Emoji, Motion, Split, emojis, prompt_order, render};
use scalebench_metrics::Image;

use crate::cli::{Dataset, SplitName};
use crate::experiment::resolve::MOST_IMAGES;
use crate::run::store::write_file;
use crate::run::{png, video};

/// Largest side of an image.
const LARGEST: u32 = 1 << 14;

/// Most frames of a video.
const MOST_FRAMES: usize = 1024;

/// Emoji rendered at once; bounds the memory.
const CHUNK: usize = 64;

pub(super) fn run(args: &Dataset) -> Result<()> {
    ensure!((1..=MOST_IMAGES).contains(&args.views), "--views: expected 1 to {MOST_IMAGES}, found {}", args.views);
    ensure!((1..=LARGEST).contains(&args.size), "--size: expected 1 to {LARGEST}, found {}", args.size);
    ensure!((1..=MOST_FRAMES).contains(&args.frames), "--frames: expected 1 to {MOST_FRAMES}, found {}", args.frames);
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    if args.png { write_png(args) } else { write_bytes(args) }
}

fn split(args: &Dataset) -> Split {
    match args.split {
        SplitName::Train => Split::Train,
        SplitName::Reference => Split::Reference,
    }
}

/// The frames of one view of an emoji; of an image, one.
fn frames(args: &Dataset, emoji: &Emoji, view: usize) -> Result<Vec<Vec<u8>>> {
    let split = split(args);
    Ok(match args.frames {
        1 => vec![render(emoji, split.placement(emoji, view), args.size, args.size)?],
        frames => split.clip(emoji, view).render(emoji, frames, args.size, args.size)?,
    })
}

/// `views` images or videos in the order in which a sweep takes its reference.
fn write_png(args: &Dataset) -> Result<()> {
    let order = prompt_order(0);
    let side = args.size as usize;
    (0..args.views).into_par_iter().try_for_each(|i| {
        let emoji = &emojis()[order[i % order.len()]];
        let images = frames(args, emoji, i / order.len())?.into_iter().map(|rgb| Ok(Image::new(side, side, rgb)?));
        let images = images.collect::<Result<Vec<_>>>()?;
        match &images[..] {
            [image] => write_file(&args.out.join(format!("{i:06}.png")), &png::encode(image, None)?),
            images => video::write_folder(&args.out.join(format!("{i:06}")), images),
        }
    })
}

/// All emoji × views as raw bytes, `(emoji, view, height, width, 3)`, for training scripts; of videos `(emoji, view, frame, …)`, and
/// what moves how in `captions.tsv`: emoji, view, motion, caption.
fn write_bytes(args: &Dataset) -> Result<()> {
    let names: String = emojis().iter().map(|emoji| format!("{}\t{}\t{}\n", emoji.text, emoji.name, emoji.group)).collect();
    write_file(&args.out.join("names.tsv"), names.as_bytes())?;
    if args.frames > 1 {
        let line = |emoji: &Emoji, view: usize| {
            let motion = Motion::of(emoji, view);
            format!("{}\t{view}\t{}\t{}\n", emoji.index, motion.index(), motion.caption(emoji))
        };
        let captions: String = emojis().iter().flat_map(|emoji| (0..args.views).map(move |view| line(emoji, view))).collect();
        write_file(&args.out.join("captions.tsv"), captions.as_bytes())?;
    }
    let path = args.out.join("images.u8");
    let temporary = args.out.join(".images.u8.tmp");
    let context = || format!("cannot write {}", path.display());
    let mut file = std::fs::File::create(&temporary).with_context(context)?;
    for chunk in emojis().chunks(CHUNK) {
        let images = chunk.par_iter().map(|emoji| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            for view in 0..args.views {
                bytes.extend(frames(args, emoji, view)?.into_iter().flatten());
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
    let description = match args.frames {
        1 => serde_json::json!({ "size": args.size, "views": args.views, "split": split }),
        frames => serde_json::json!({ "size": args.size, "views": args.views, "frames": frames, "split": split }),
    };
    write_file(&args.out.join("dataset.json"), format!("{description}\n").as_bytes())
}
