import numpy as np

random = np.random.default_rng(0)
ROUNDS, REPEATS = 60, 400
one_after_the_other, in_turns = [], []
for _ in range(REPEATS):
    drift = 1 + 0.1 * np.cumsum(random.normal(0, 0.1, 2 * ROUNDS))  # the machine warms and cools
    times = np.abs(drift * (1 + np.abs(random.normal(0, 0.03, 2 * ROUNDS))))
    first, second = np.split(times, 2)
    one_after_the_other.append(np.median(second) / np.median(first) - 1)
    in_turns.append(np.median(times[1::2] / times[::2]) - 1)
print("two measurements of the same program: how often they differ by more than")
print("                        1%      5%     10%")
for name, found in (("one after the other", one_after_the_other), ("in turns", in_turns)):
    shares = [np.mean(np.abs(found) > limit) for limit in (0.01, 0.05, 0.10)]
    print(f"{name:<20}" + "".join(f"{share:>7.0%}" for share in shares))
