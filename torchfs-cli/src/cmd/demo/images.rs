//! A labelled image tree: `CLASS/NNNN.png` and `labels.csv`. The same one every time, as it grows from one seed.

use super::png;
use super::stop::Stop;
use crate::exit::{Exit, Failure, Outcome};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::Path;
use torchfs_core::IoContext;

const SEED: u64 = 20_260_101;
const IMAGES_PER_CLASS: usize = 200;

/// What is drawn, by class; each shape is a function of a point in -1..1 around the centre.
const CLASSES: [(&str, Shape); 10] = [
    ("circle", |x, y| x.hypot(y) < 0.7),
    ("cross", |x, y| x.abs() < 0.2 || y.abs() < 0.2),
    ("diamond", |x, y| x.abs() + y.abs() < 0.8),
    ("grid", |x, y| (x * 4.0).fract().abs() < 0.25 || (y * 4.0).fract().abs() < 0.25),
    ("heart", |x, y| (x * x + y * y - 0.4).powi(3) + x * x * y.powi(3) < 0.0),
    ("ring", |x, y| (0.45..0.75).contains(&x.hypot(y))),
    ("square", |x, y| x.abs().max(y.abs()) < 0.6),
    ("stripes", |x, _| (x * 3.0).fract().abs() < 0.5),
    ("triangle", |x, y| y < 0.6 && y > 2.0 * x.abs() - 0.8),
    ("wave", |x, y| (y - 0.4 * (x * 6.0).sin()).abs() < 0.2),
];

type Shape = fn(f32, f32) -> bool;

/// Writes the tree to `root`, which is made.
pub fn make(root: &Path, stop: &Stop) -> Outcome {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut labels = String::from("path,label\n");
    for (class, shape) in CLASSES {
        let folder = root.join(class);
        fs::create_dir_all(&folder).io(|| format!("make {}", folder.display()))?;
        for number in 0..IMAGES_PER_CLASS {
            if stop.is_set() {
                return Err(Failure::silent(Exit::Interrupted));
            }
            let name = format!("{number:04}.png");
            let path = folder.join(&name);
            fs::write(&path, draw(shape, &mut random)).io(|| format!("write {}", path.display()))?;
            labels.push_str(&format!("{class}/{name},{class}\n"));
        }
    }
    Ok(fs::write(root.join("labels.csv"), labels).io(|| "write labels.csv")?)
}

/// One shape, moved, turned, scaled and coloured at random, under noise; 7 to 38 KB as PNG.
fn draw(shape: Shape, random: &mut StdRng) -> Vec<u8> {
    let (width, height): (u32, u32) = (random.random_range(48..=112), random.random_range(48..=112));
    let (sin, cos) = random.random_range(0.0..std::f32::consts::TAU).sin_cos();
    let (scale, dx, dy) =
        (random.random_range(0.8..1.4), random.random_range(-0.2..0.2), random.random_range(-0.2..0.2));
    let (front, back): ([u8; 3], [u8; 3]) = (random.random(), random.random());
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for row in 0..height {
        for column in 0..width {
            let x = (column as f32 / width as f32 * 2.0 - 1.0 - dx) * scale;
            let y = (row as f32 / height as f32 * 2.0 - 1.0 - dy) * scale;
            let inside = shape(x * cos - y * sin, x * sin + y * cos);
            let noise: [u8; 3] = random.random();
            let colour = if inside { front } else { back };
            pixels.extend(colour.iter().zip(noise).map(|(colour, noise)| colour / 4 * 3 + noise / 4));
        }
    }
    png::encode(width, height, &pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_image() {
        let draw_first = || draw(CLASSES[0].1, &mut StdRng::seed_from_u64(7));
        assert_eq!(draw_first(), draw_first());
        assert_ne!(draw_first(), draw(CLASSES[0].1, &mut StdRng::seed_from_u64(8)));
    }

    #[test]
    fn every_class_draws_something_on_something() {
        for (class, shape) in CLASSES {
            let points = (0..400).map(|at| (at % 20, at / 20));
            let inside = points.filter(|&(x, y)| shape(x as f32 / 10.0 - 0.95, y as f32 / 10.0 - 0.95)).count();
            assert!((20..380).contains(&inside), "{class}: {inside} of 400");
        }
    }
}
