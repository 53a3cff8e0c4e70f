"""Monthly series of the climate that statsmodels carries, or an hourly series of a stated process without it."""

from importlib.util import find_spec

import numpy as np

from hfseq.data.series import Series
from hfseq.lazy import pd

HOURS = 24 * 7 * 20
"""Length of the synthetic series: 20 weeks."""


def climate_series() -> tuple[list[Series], str]:
    """Real monthly series, or a synthetic hourly one if statsmodels is not installed.

    Returns:
        The series, and what they are. The real ones are the CO2 concentration at Mauna Loa from March 1958 to December
        2001, monthly means in ppm (Keeling and Whorf 2004), five of them missing, and the temperature of the sea
        surface in the El Niño region 1+2 from 1950 to 2010, monthly means in degrees Celsius (NOAA).
    """
    if find_spec("statsmodels") is None:
        return [hourly_process()], "a synthetic hourly series with daily and weekly rhythm"
    from statsmodels.datasets import co2, elnino

    source = "statsmodels"
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean()
    years = elnino.load_pandas().data.set_index("YEAR")
    temperatures = years.to_numpy(dtype=float).ravel()
    first = f"{int(years.index[0])}-01-01"
    return [
        Series(
            "co2",
            monthly.to_numpy(dtype=float),
            pd.DatetimeIndex(monthly.index),
            static_categories=("co2",),
            source=source,
        ),
        Series(
            "el_nino",
            temperatures,
            pd.date_range(first, periods=len(temperatures), freq="MS"),
            static_categories=("el_nino",),
            source=source,
        ),
    ], "CO2 and El Niño, monthly"


def hourly_process(hours: int = HOURS, seed: int = 0) -> Series:
    """Hourly series of a stated process: synthetic, for machines without statsmodels.

    z_t = 100 (1 + 0.5 sin(2 pi h / 24)) w + e_t with the hour h of the day, w = 0.6 on Saturdays and Sundays and 1 on
    other days, and e_t = 0.8 e_(t-1) + n_t with independent normal n_t of standard deviation 3.
    """
    stamps = pd.date_range("2024-01-01", periods=hours, freq="h")
    noise = np.random.default_rng(seed).normal(0, 3, hours)
    for step in range(1, hours):
        noise[step] += 0.8 * noise[step - 1]
    weekend = np.where(stamps.day_of_week >= 5, 0.6, 1.0)
    values = 100 * (1 + 0.5 * np.sin(2 * np.pi * stamps.hour / 24)) * weekend + noise
    return Series("synthetic", np.asarray(values), stamps, static_categories=("synthetic",), source="synthetic series")
