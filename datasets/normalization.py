"""Published mean and standard deviation of the sources of OSPretrain-1M, on [0, 1] values."""

from dataclasses import dataclass

from codemae.data.statistics import SourceStatistics


@dataclass(frozen=True, slots=True)
class PublishedStatistics:
    """One source's numbers; optical channels in the order red, green, blue."""

    optical_mean: tuple[float, float, float]
    optical_std: tuple[float, float, float]
    sar_mean: float
    sar_std: float

    def of(self, modality: str) -> SourceStatistics:
        """The statistics of one modality, marked as published."""
        if modality == "optical":
            return SourceStatistics(
                channels=3, mean=self.optical_mean, std=self.optical_std, computed="published"
            )
        return SourceStatistics(channels=1, mean=(self.sar_mean,), std=(self.sar_std,), computed="published")


OSPRETRAIN = {
    "SpaceNet6": PublishedStatistics((0.3712, 0.3928, 0.3576), (0.1871, 0.1627, 0.1723), 0.3552, 0.2093),
    "DFC23_Track2": PublishedStatistics((0.3159, 0.3418, 0.2800), (0.1797, 0.1655, 0.1688), 0.1926, 0.1986),
    "DFC23_Track1": PublishedStatistics((0.3240, 0.3476, 0.2904), (0.2159, 0.1874, 0.1739), 0.1814, 0.1975),
    "DFC25": PublishedStatistics((0.4920, 0.5066, 0.4548), (0.2164, 0.1811, 0.1765), 0.1941, 0.1369),
    "QXSLAB_SARPORT": PublishedStatistics((0.4371, 0.4139, 0.4133), (0.2016, 0.1717, 0.1654), 0.2707, 0.2359),
    "OGSOD-2": PublishedStatistics((0.3544, 0.3587, 0.3384), (0.2237, 0.2099, 0.2112), 0.4770, 0.2693),
    "PIE-RGB-SAR": PublishedStatistics((0.3545, 0.3812, 0.3122), (0.2184, 0.1870, 0.1907), 0.3617, 0.2141),
    "YESeg-OPT-SAR": PublishedStatistics((0.3878, 0.3814, 0.3735), (0.1493, 0.1443, 0.1418), 0.1598, 0.1344),
    "DDHR": PublishedStatistics((0.2243, 0.2357, 0.2443), (0.1463, 0.1329, 0.1274), 0.2365, 0.2034),
    "WHU-OPT-SAR": PublishedStatistics((0.1639, 0.1527, 0.1260), (0.0723, 0.0740, 0.0703), 0.2119, 0.1911),
    "SS4EO-S12": PublishedStatistics((0.4842, 0.4813, 0.4785), (0.1963, 0.1732, 0.1483), 0.3819, 0.2224),
    "GFGE_SOdataset": PublishedStatistics((0.4005, 0.3968, 0.3373), (0.2430, 0.1730, 0.1549), 0.3929, 0.2324),
    "EarthMiss": PublishedStatistics((0.4147, 0.4097, 0.3867), (0.2342, 0.2022, 0.2002), 0.2871, 0.2626),
    "osdataset": PublishedStatistics((0.4071, 0.4227, 0.3414), (0.2370, 0.2035, 0.2038), 0.2683, 0.1898),
    "Unpaired": PublishedStatistics((0.3865, 0.4117, 0.3632), (0.2093, 0.1803, 0.1748), 0.1738, 0.2226),
}
