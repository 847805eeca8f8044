//! Charts as SVG, by hand: a few lines or clouds of dots need no library.

use std::collections::HashSet;
use std::fmt::{self, Write};

/// The picture, and the part of it that is drawn in.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 500.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 360.0;

/// Told apart by people who do not see all colours, too (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"];

/// As many names as there is room for beside the chart.
const NAMES_MAX: usize = 15;

/// A chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// Along one side.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    pub label: String,
    /// What is written where, from 0 to 1.
    pub ticks: Vec<(f64, String)>,
}

/// What has one colour and name.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub marks: Marks,
    /// Each from 0 to 1, to the right and upward.
    pub points: Vec<(f64, f64)>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Joined by a line.
    Line,
    /// Each for itself; those that fall on the same spot are drawn once, so that millions make no huge file.
    Dots,
}

impl Axis {
    /// Six ticks from 0 on, written by `text`, which gets the part of the whole.
    pub fn with_ticks(label: impl Into<String>, text: impl Fn(f64) -> String) -> Axis {
        let ticks = (0..=5).map(|fifth| f64::from(fifth) / 5.0).map(|part| (part, text(part)));
        Axis { label: label.into(), ticks: ticks.collect() }
    }
}

impl Chart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.draw(&mut out);
        out
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">"
        )?;
        writeln!(out, "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>")?;
        text(out, LEFT, 24.0, "start", &self.title)?;
        self.draw_axes(out)?;
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            match series.marks {
                Marks::Line => draw_line(out, series, colour)?,
                Marks::Dots => draw_dots(out, series, colour)?,
            }
            if number < NAMES_MAX {
                draw_name(out, number, series, colour)?;
            }
        }
        writeln!(out, "</svg>")
    }

    fn draw_axes(&self, out: &mut String) -> fmt::Result {
        for (part, words) in &self.y.ticks {
            let at = y(*part);
            writeln!(out, "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>")?;
            text(out, LEFT - 8.0, at + 4.0, "end", words)?;
        }
        for (part, words) in &self.x.ticks {
            text(out, x(*part), BOTTOM + 20.0, "middle", words)?;
        }
        text(out, (LEFT + RIGHT) / 2.0, BOTTOM + 44.0, "middle", &self.x.label)?;
        text(out, LEFT, TOP - 8.0, "middle", &self.y.label)
    }
}

fn draw_line(out: &mut String, series: &Series, colour: &str) -> fmt::Result {
    let points = series.points.iter().map(|&(right, up)| (x(right), y(up)));
    let path: Vec<String> = points.clone().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" "))?;
    for (x, y) in points {
        writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>")?;
    }
    Ok(())
}

fn draw_dots(out: &mut String, series: &Series, colour: &str) -> fmt::Result {
    // Half a unit is the finest that is told apart.
    let spot = |&(right, up): &(f64, f64)| ((x(right) * 2.0).round() as u32, (y(up) * 2.0).round() as u32);
    write!(out, "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linecap=\"round\" d=\"")?;
    let mut drawn = HashSet::new();
    for (x, y) in series.points.iter().map(spot).filter(|&spot| drawn.insert(spot)) {
        write!(out, "M{} {}h0", f64::from(x) / 2.0, f64::from(y) / 2.0)?;
    }
    writeln!(out, "\"/>")
}

fn draw_name(out: &mut String, number: usize, series: &Series, colour: &str) -> fmt::Result {
    let at = TOP + 10.0 + 20.0 * number as f64;
    writeln!(out, "<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>", RIGHT + 20.0, at - 6.0)?;
    text(out, RIGHT + 40.0, at, "start", &series.name)
}

fn x(part: f64) -> f64 {
    LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
}

fn y(part: f64) -> f64 {
    BOTTOM - part.clamp(0.0, 1.0) * (BOTTOM - TOP)
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) -> fmt::Result {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(marks: Marks, series: &[(&str, &[(f64, f64)])]) -> String {
        let series =
            series.iter().map(|&(name, points)| Series { name: name.to_owned(), marks, points: points.to_vec() });
        let percent = |part: f64| format!("{:.0} %", part * 100.0);
        let (x, y) = (Axis::with_ticks("cache", percent), Axis::with_ticks("hits", percent));
        Chart { title: "a < b".to_owned(), x, y, series: series.collect() }.svg()
    }

    #[test]
    fn every_line_is_drawn_and_named() {
        let drawn =
            chart(Marks::Line, &[("lru & none", &[(0.5, 0.25), (1.0, 1.0)]), ("fifo", &[(0.5, 0.0), (1.0, 1.0)])]);
        assert_eq!((drawn.matches("<polyline").count(), drawn.matches("<circle").count()), (2, 4));
        assert!(drawn.contains("a &lt; b") && drawn.contains("lru &amp; none") && drawn.contains(">40 %<"), "{drawn}");
        assert!(drawn.contains(&format!("{:.1},{:.1} {RIGHT:.1},{TOP:.1}", (LEFT + RIGHT) / 2.0, y(0.25))), "{drawn}");
        assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
    }

    #[test]
    fn dots_that_cannot_be_told_apart_are_drawn_once() {
        let many: Vec<(f64, f64)> = (0..100_000).map(|at| (f64::from(at) / 1e5, 0.5)).collect();
        let drawn = chart(Marks::Dots, &[("epoch 1", &[(0.0, 0.0), (0.5, 1.0)]), ("epoch 2", &many)]);
        let dots = drawn.matches("h0").count();
        assert!((2 + 800..2 + 1000).contains(&dots), "{dots}");
        assert!(drawn.contains(&format!("M{LEFT} {BOTTOM}h0")), "{drawn}");
    }
}
