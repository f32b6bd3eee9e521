import numpy as np

random = np.random.default_rng(0)


def softmax(z):
    exponentials = np.exp(z - z.max())
    return exponentials / exponentials.sum()


truth = softmax(2 * random.normal(size=100))
draws = random.choice(100, 100_000, p=truth)
teacher = np.bincount(draws, minlength=100) / len(draws)  # read far more than the student will
text = random.choice(100, 3000, p=truth)


def distances(alpha, rate=0.2):
    """Gives KL(truth, student) after 30, 300 and 3,000 tokens of text."""
    z, found = np.zeros(100), []
    for number, token in enumerate(text, start=1):
        q = softmax(z)
        of_text = q - np.eye(100)[token]
        z -= rate * (alpha * of_text + (1 - alpha) * (q - teacher))
        if number in (30, 300, 3000):
            found.append(np.sum(truth * np.log(truth / softmax(z))))
    return found


print("distance from the truth after    30      300    3,000 tokens")
for name, alpha in (("the text alone", 1.0), ("text and teacher", 0.5), ("the teacher alone", 0.0)):
    print(f"{name:<28}" + "".join(f"{distance:>9.3f}" for distance in distances(alpha)))
