/// One place that water can flow to: what it carries already, and how fast it works that off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basin {
    pub load: f64,
    pub speed: f64,
}

/// The time that all basins reach which get a part of `amount`, when the slowest of them is to be as
/// fast as possible: basins that need longer already get nothing, the others end at the same time.
/// Sorts the basins by time.
pub(super) fn level(amount: f64, basins: &mut [Basin]) -> f64 {
    let time = |basin: &Basin| basin.load / basin.speed;
    basins.sort_unstable_by(|a, b| time(a).total_cmp(&time(b)));
    let (mut load, mut speed, mut level) = (amount, 0.0, f64::INFINITY);
    for basin in basins.iter() {
        if time(basin) >= level {
            break;
        }
        load += basin.load;
        speed += basin.speed;
        level = load / speed;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level_of(amount: f64, basins: &[(f64, f64)]) -> f64 {
        let mut basins: Vec<Basin> =
            basins.iter().map(|&(load, speed)| Basin { load, speed }).collect();
        level(amount, &mut basins)
    }

    #[test]
    fn water_finds_its_level() {
        assert_eq!(level_of(6.0, &[(4.0, 1.0), (2.0, 1.0)]), 6.0);
        assert_eq!(level_of(1.0, &[(4.0, 1.0), (2.0, 1.0)]), 3.0);
        assert_eq!(level_of(6.0, &[(9.0, 1.0), (4.0, 1.0), (2.0, 1.0)]), 6.0);
        assert_eq!(level_of(0.0, &[(4.0, 1.0), (2.0, 1.0)]), 2.0);
        // Three times as fast: gets three quarters of what is above.
        assert_eq!(level_of(8.0, &[(0.0, 3.0), (0.0, 1.0)]), 2.0);
    }
}
