//! Pure. How long an answer takes, when a fault makes it late.

use std::time::Duration;

/// The waits of a `latency` fault.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Latency {
    pub(super) shape: Shape,
    /// No wait is longer.
    pub(super) max: Option<Duration>,
}

/// How the waits are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    Uniform {
        min: Duration,
        max: Duration,
    },
    Exponential {
        mean: Duration,
    },
    Normal {
        mean: Duration,
        deviation: Duration,
    },
    /// A median, and how far the logarithms are spread: the shape of most real services.
    LogNormal {
        median: Duration,
        sigma: f64,
    },
}

/// Where 99 of 100 values of the standard normal distribution lie below.
pub(super) const P99: f64 = 2.326_347_874;

// === impl Latency ===

impl Latency {
    /// Draws a wait.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        let wait = match self.shape {
            Shape::Uniform { min, max } => min + max.saturating_sub(min).mul_f64(rng.f64()),
            Shape::Exponential { mean } => mean.mul_f64(-(1.0 - rng.f64()).ln()),
            Shape::Normal { mean, deviation } => {
                let seconds = mean.as_secs_f64() + deviation.as_secs_f64() * normal(rng);
                Duration::try_from_secs_f64(seconds).unwrap_or_default()
            }
            Shape::LogNormal { median, sigma } => median.mul_f64((sigma * normal(rng)).exp().min(1e6)),
        };
        self.max.map_or(wait, |max| wait.min(max))
    }
}

/// A value of the standard normal distribution (Box and Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantiles(shape: Shape) -> (f64, f64, f64) {
        let (latency, mut rng) = (Latency { shape, max: None }, fastrand::Rng::with_seed(1));
        let mut waits: Vec<f64> =
            (0..20_000).map(|_| latency.draw(&mut rng).as_secs_f64() * 1000.0).collect();
        waits.sort_by(f64::total_cmp);
        let mean = waits.iter().sum::<f64>() / waits.len() as f64;
        (mean, waits[10_000], waits[19_800])
    }

    #[test]
    fn the_waits_are_spread_as_asked() {
        let ms = Duration::from_millis;
        let (mean, ..) = quantiles(Shape::Exponential { mean: ms(50) });
        assert!((48.0..52.0).contains(&mean), "{mean}");
        let (mean, median, _) = quantiles(Shape::Normal { mean: ms(100), deviation: ms(10) });
        assert!((99.0..101.0).contains(&mean) && (99.0..101.0).contains(&median), "{mean} {median}");
        let sigma = (400.0_f64 / 20.0).ln() / P99;
        let (_, median, p99) = quantiles(Shape::LogNormal { median: ms(20), sigma });
        assert!((19.0..21.0).contains(&median) && (350.0..450.0).contains(&p99), "{median} {p99}");
        let capped = Latency { shape: Shape::Exponential { mean: ms(50) }, max: Some(ms(60)) };
        let mut rng = fastrand::Rng::with_seed(1);
        assert!((0..1000).all(|_| capped.draw(&mut rng) <= ms(60)));
    }
}
