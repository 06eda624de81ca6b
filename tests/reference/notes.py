"""Compute the equations of the notes as loops over Python floats: slow, easy to check.

Arguments are nested lists of floats (``tensor.tolist()``); results are floats.
"""

import colorsys
import math


def dot(a, b):
    """Return the inner product of two vectors."""
    return sum(a[j] * b[j] for j in range(len(a)))


def reconstruction(rebuilt, x):
    """Return l_pre of 14.1 for one image: nested lists of channels, rows, pixels."""
    total, d = 0.0, 0
    for c in range(len(x)):
        for i in range(len(x[c])):
            for j in range(len(x[c][i])):
                total += (rebuilt[c][i][j] - x[c][i][j]) ** 2
                d += 1
    return total / d


def simclr(phi_hat, phi_tilde):
    """Return the loss of 14.2 in the notes: one-sided, without a temperature, a sum."""
    total = 0.0
    for i in range(len(phi_hat)):
        scores = [
            math.exp(dot(phi_hat[i], phi_tilde[j])) for j in range(len(phi_tilde))
        ]
        total -= math.log(scores[i] / sum(scores))
    return total


def normalized_rows(phi):
    """Scale each row to length 1."""
    return [[x / math.sqrt(dot(row, row)) for x in row] for row in phi]


def nt_xent(phi_hat, phi_tilde, tau):
    """Return the loss of algorithm 1 of Chen et al. 2020."""
    B, z = len(phi_hat), normalized_rows([*phi_hat, *phi_tilde])
    total = 0.0
    for i in range(2 * B):
        scores = [math.exp(dot(z[i], z[j]) / tau) for j in range(2 * B)]
        partner = i + B if i < B else i - B
        total -= math.log(scores[partner] / (sum(scores) - scores[i]))
    return total / (2 * B)


def supcon(phi, labels, tau):
    """Return equation 2 of Khosla et al. 2020, over the views that have a positive."""
    z, terms = normalized_rows(phi), []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        whole = sum(math.exp(dot(z[i], z[j]) / tau) for j in others)
        logs = [math.log(math.exp(dot(z[i], z[p]) / tau) / whole) for p in positives]
        if positives:
            terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


def mean_cross_entropy(phi, labels, W, b, lambda_):
    """Return (14.1) with l_task = -log p(y | x), softmax of W phi(x) + b; a ridge."""
    total = 0.0
    for i in range(len(phi)):
        u = [dot(W[j], phi[i]) + b[j] for j in range(len(W))]
        total -= math.log(math.exp(u[labels[i]]) / sum(math.exp(u_j) for u_j in u))
    ridge = sum(w**2 for row in W for w in row)
    return total / len(phi) + lambda_ / 2 * ridge


def mean_squared_error(phi, targets, w, b, ridge):
    """Return (14.1) with l_task = (y - w . phi(x) - b)^2, and a ridge."""
    total = 0.0
    for i in range(len(phi)):
        total += (targets[i] - dot(w, phi[i]) - b) ** 2
    return total / len(phi) + ridge * dot(w, w)


def convolution(x, kernel, stride, padding):
    """Convolve an image, channels of rows of pixels, with a filter; pad with zeros."""
    size, channels = len(kernel[0]), len(x)
    height, width = len(x[0]) + 2 * padding, len(x[0][0]) + 2 * padding

    def pixel(c, i, j):
        inside = 0 <= i < len(x[0]) and 0 <= j < len(x[0][0])
        return x[c][i][j] if inside else 0.0

    rows = []
    for top in range(0, height - size + 1, stride):
        row = []
        for left in range(0, width - size + 1, stride):
            total = 0.0
            for c in range(channels):
                for i in range(size):
                    for j in range(size):
                        value = pixel(c, top + i - padding, left + j - padding)
                        total += kernel[c][i][j] * value
            row.append(total)
        rows.append(row)
    return rows


def normalized(x, mean, variance, weight, bias, epsilon):
    """Apply batch norm in eval mode to one channel."""
    scale = weight / math.sqrt(variance + epsilon)
    return [[(value - mean) * scale + bias for value in row] for row in x]


def gradient_descent_on_squared_error(phi, targets, *, rate, steps):
    """Return w of (14.1) with squared loss, from w = 0, without a ridge and a bias."""
    m = len(phi[0])
    w = [0.0] * m
    for _ in range(steps):
        slope = [0.0] * m
        for i in range(len(phi)):
            error = dot(w, phi[i]) - targets[i]
            for j in range(m):
                slope[j] += 2 * error * phi[i][j] / len(phi)
        w = [w[j] - rate * slope[j] for j in range(m)]
    return w


def pixel_between(channel, x, y):
    """Interpolate bilinearly at (x, y) in pixels; the first pixel is centred at 0.5.

    `channel` is a list of rows, and its edges are repeated outside it.
    """

    def at(i, j):
        i, j = min(max(i, 0), len(channel) - 1), min(max(j, 0), len(channel[0]) - 1)
        return channel[i][j]

    i, j = math.floor(y - 0.5), math.floor(x - 0.5)
    dy, dx = y - 0.5 - i, x - 0.5 - j
    above = (1 - dx) * at(i, j) + dx * at(i, j + 1)
    below = (1 - dx) * at(i + 1, j) + dx * at(i + 1, j + 1)
    return (1 - dy) * above + dy * below


def view(image, size, v):
    """Render one view: a crop, flipped, turned and enlarged; then change its colours.

    `image` is a list of channels of rows of bytes; `v` has the names of `Views`.
    """
    channels = [[[0.0] * size for _ in range(size)] for _ in image]
    for i in range(size):
        for j in range(size):
            x = ((j + 0.5) / size - 0.5) * v["width"]  # from the crop's centre
            y = ((i + 0.5) / size - 0.5) * v["height"]
            if v["flip"]:
                x = -x
            # y points down, so a counterclockwise turn of the image reads clockwise
            turned_x = x * math.cos(v["angle"]) - y * math.sin(v["angle"])
            turned_y = x * math.sin(v["angle"]) + y * math.cos(v["angle"])
            x = v["left"] + v["width"] / 2 + turned_x
            y = v["top"] + v["height"] / 2 + turned_y
            for c in range(len(image)):
                channels[c][i][j] = pixel_between(image[c], x, y) / 255
    return recoloured(channels, v)


def recoloured(channels, v):
    """Change brightness, contrast, saturation, hue and grey, pixel by pixel."""

    def cut(value):
        return min(max(value, 0.0), 1.0)

    def grey_of(colour):
        if len(colour) == 1:
            return colour[0]
        return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]

    rows, columns = range(len(channels[0])), range(len(channels[0][0]))
    places = [(i, j) for i in rows for j in columns]
    colours = [
        [cut(channel[i][j] * v["brightness"]) for channel in channels]
        for i, j in places
    ]
    mean = sum(map(grey_of, colours)) / len(colours)
    for n in range(len(colours)):
        colour = [cut(mean + v["contrast"] * (x - mean)) for x in colours[n]]
        if len(colour) == 3:
            grey = grey_of(colour)
            colour = [cut(grey + v["saturation"] * (x - grey)) for x in colour]
            hue, s, value = colorsys.rgb_to_hsv(*colour)
            colour = [*colorsys.hsv_to_rgb((hue + v["hue"]) % 1.0, s, value)]
            if v["grey"]:
                colour = [grey_of(colour)] * 3
        colours[n] = colour
    result = [[[0.0 for _ in columns] for _ in rows] for _ in channels]
    for (i, j), colour in zip(places, colours, strict=True):
        for c in range(len(colour)):
            result[c][i][j] = colour[c]
    return result


def knn_votes(bank, labels, query, classes, neighbours, tau):
    """Return the votes for each class, weighted by exp(cosine / tau), of one query."""
    known, [x] = normalized_rows(bank), normalized_rows([query])
    cosines = [dot(x, z) for z in known]
    nearest = sorted(range(len(known)), key=lambda i: -cosines[i])[:neighbours]
    largest = cosines[nearest[0]]
    votes = [0.0] * classes
    for i in nearest:
        votes[labels[i]] += math.exp((cosines[i] - largest) / tau)
    return votes


def squared_distance(a, b):
    """Return the squared distance of two vectors."""
    return sum((a[j] - b[j]) ** 2 for j in range(len(a)))


def alignment(phi_hat, phi_tilde):
    """Return the alignment of Wang and Isola 2020, alpha = 2."""
    pairs = zip(normalized_rows(phi_hat), normalized_rows(phi_tilde), strict=True)
    return sum(squared_distance(a, b) for a, b in pairs) / len(phi_hat)


def uniformity(phi):
    """Return the uniformity of Wang and Isola 2020, t = 2."""
    z, terms = normalized_rows(phi), []
    for i in range(len(z)):
        for j in range(i):
            terms.append(math.exp(-2 * squared_distance(z[i], z[j])))
    return math.log(sum(terms) / len(terms))


def softmax(u):
    """Return the probabilities (14.6) of logits."""
    powers = [math.exp(value) for value in u]
    return [power / sum(powers) for power in powers]


def next_token(u, x):
    """Return (14.8) for one document: logits u_1 .. u_T, ids x_1 .. x_T from 0."""
    total = 0.0
    for t in range(len(x)):
        total -= math.log(softmax(u[t])[x[t]])
    return total / len(x)


def masked_token(u, x, masked):
    """Return the loss of Devlin et al. 2019 over the masked positions."""
    terms = []
    for b in range(len(x)):
        for t in range(len(x[b])):
            if masked[b][t]:
                terms.append(-math.log(softmax(u[b][t])[x[b][t]]))
    return sum(terms) / len(terms)


def brier(p, labels):
    """Return the Brier score of rows of probabilities, given the true classes."""
    total = 0.0
    for row, label in zip(p, labels, strict=True):
        for j in range(len(row)):
            total += (row[j] - (1.0 if j == label else 0.0)) ** 2
    return total / len(p)


def crossed_means(table, rows, columns):
    """Return the mean of each table of drawn rows and columns."""
    means = []
    for some_rows, some_columns in zip(rows, columns, strict=True):
        cells = [table[i][j] for i in some_rows for j in some_columns]
        means.append(sum(cells) / len(cells))
    return means
