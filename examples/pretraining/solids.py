"""Solids with light and shadow on a ground: creatures and contours, drawn from signed distances."""

import math

import numpy as np
from scipy import ndimage

from .canvas import N_CLASSES, SIZE, blend, formula_rng, random_colour, random_view, rotate
from .patterns import random_texture, texture_class


def shade(distance, height, rng):
    """Mask, brightness and gloss of a solid from its distance field (negative inside) and height field."""
    mask = np.clip(0.5 - distance * SIZE / 2.5, 0, 1)
    gy, gx = np.gradient(height, 2 / SIZE)
    normal = np.stack([-gx, -gy, np.ones_like(gx)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = np.array([*rng.uniform(-1, 1, 2), rng.uniform(0.4, 1.2)], dtype=np.float32)
    light /= np.linalg.norm(light)
    lambert = np.clip(normal @ light, 0, 1)
    ambient = rng.uniform(0.15, 0.6)
    gloss = rng.uniform(0, 0.7) * lambert ** rng.uniform(8, 40)
    return mask, ambient + (1 - ambient) * lambert, gloss


def place(ground, skin, distance, height, rng):
    """Lay a lit solid with its shadow and, sometimes, an outline on a ground."""
    mask, brightness, gloss = shade(distance, height, rng)
    if rng.random() < 0.5:
        shift = rng.integers(-6, 7, 2)
        shadow = ndimage.uniform_filter(np.roll(mask, shift, (0, 1)), 5) * rng.uniform(0.2, 0.7)
        ground = ground * (1 - shadow[..., None])
    picture = blend(ground, np.clip(skin * brightness[..., None] + gloss[..., None], 0, 1), mask)
    if rng.random() < 0.25:
        line = np.clip(1 - np.abs(distance) * SIZE / rng.uniform(2, 5), 0, 1)
        picture = blend(picture, np.broadcast_to(random_colour(rng), picture.shape), line)
    return picture


def creature_plan(label):
    """Body plan of a creature: its parts, each hung on an earlier one, and the colours it tends to have."""
    fixed = formula_rng("creatures", label)
    n_parts = int(fixed.integers(3, 9))
    plan = {
        "parent": [int(fixed.integers(0, max(1, min(i, 3)))) for i in range(n_parts)],
        "angle": fixed.uniform(0, 2 * np.pi, n_parts),
        "reach": fixed.uniform(0.7, 1.3, n_parts),
        "length": fixed.uniform(0.16, 0.42, n_parts) * np.linspace(1.3, 0.7, n_parts),
        "width": fixed.uniform(0.06, 0.26, n_parts),
        "boxy": fixed.random(n_parts) < 0.3,
        "mirrored": fixed.random() < 0.4,
        "softness": float(fixed.uniform(0.02, 0.12)),
        "colours": fixed.uniform(0.05, 0.95, (n_parts, 3)),
        "skin": int(fixed.integers(N_CLASSES["textures"])),
        "skinned": fixed.random() < 0.4,
    }
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plan.items()}


def part_distance(x, y, length, width, boxy):
    """Signed distance to an upright capsule or box around the origin."""
    if boxy:
        dx, dy = np.abs(x) - length, np.abs(y) - width
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    return np.hypot(x - np.clip(x, -length + width, length - width) if length > width else x, y) - width


def creature_distance(plan, x, y, rng):
    """Distance field of a posed creature and the number of the nearest part at each pixel."""
    centres, angles, distances = [], [], []
    for i, parent in enumerate(plan["parent"]):
        angle = plan["angle"][i] + rng.normal(0, 0.22)
        centre = (0.0, 0.0)
        if i:
            direction = angles[parent] + angle
            step = plan["reach"][i] * (0.6 * plan["length"][parent] + 0.6 * plan["length"][i])
            centre = (centres[parent][0] + step * math.cos(direction), centres[parent][1] + step * math.sin(direction))
        centres.append(centre)
        angles.append(angle)
        u, v = rotate(x - centre[0], y - centre[1], -angle)
        length, width = plan["length"][i] * rng.uniform(0.85, 1.15), plan["width"][i] * rng.uniform(0.85, 1.15)
        distances.append(part_distance(u, v, length, width, plan["boxy"][i]))
    distances = np.stack(distances)
    soft = plan["softness"]
    lowest = distances.min(axis=0)
    union = lowest - soft * np.log(np.exp(-(distances - lowest) / soft).sum(axis=0))
    return union, distances.argmin(axis=0)


def creature_skin(plan, nearest, rng):
    """Colour of every pixel of a creature: its own palette, or a new one, with or without a pattern."""
    n_parts = len(plan["parent"])
    colours = (
        np.array(plan["colours"]) if rng.random() < 0.6 else np.stack([random_colour(rng) for _ in range(n_parts)])
    )
    colours = np.clip(colours + rng.normal(0, 0.07, (1, 3)), 0, 1)
    skin = colours[nearest].astype(np.float32)
    if plan["skinned"]:
        skin = 0.45 * skin + 0.55 * texture_class(plan["skin"], rng)
    return skin


def creature_class(label, rng):
    """Draw creature ``label`` in a new pose, view, light and place."""
    plan = creature_plan(label)
    x, y = random_view(rng, zoom=(0.6, 1.3), shift=0.25, turn=0.5)
    if rng.random() < 0.5:
        x = -x
    if plan["mirrored"]:
        x = np.abs(x) - 0.1
    distance, nearest = creature_distance(plan, x, y, rng)
    height = np.sqrt(np.clip(-distance, 0, None) * 0.5 + 1e-4)
    ground = random_texture(rng)
    if rng.random() < 0.3:
        ground = add_clutter(ground, rng)
    return place(ground, creature_skin(plan, nearest, rng), distance, height, rng)


def add_clutter(ground, rng):
    """Put one or two contours of a random class on the ground."""
    for _ in range(rng.integers(1, 3)):
        distance, height = contour_distance(int(rng.integers(N_CLASSES["contours"])), rng, zoom=(2.0, 4.0), shift=2.0)
        ground = place(ground, random_texture(rng), distance, height, rng)
    return ground


def contour_distance(label, rng, zoom=(0.75, 1.7), shift=0.3):
    """Distance and height field of the closed curve ``label``: a circle whose radius is a sum of sine waves."""
    fixed = formula_rng("contours", label)
    x, y = random_view(rng, zoom=zoom, shift=shift)
    theta, radius = np.arctan2(y, x), np.hypot(x, y)
    edge = np.full_like(theta, 0.7)
    for _ in range(int(fixed.integers(1, 4))):
        order, amplitude = int(fixed.integers(2, 13)), fixed.uniform(0.05, 0.3)
        wave = np.sin(order * theta + fixed.uniform(0, 6.28) + rng.normal(0, 0.1))
        wave = np.abs(wave) - 0.5 if fixed.random() < 0.3 else wave
        edge += amplitude * rng.uniform(0.8, 1.2) * 3 / (order + 2) * wave
    distance = 0.9 * (radius - edge) / zoom[0]
    rings = int(fixed.integers(0, 4))
    height = np.sqrt(np.clip(edge - radius, 0, None) * 0.4 + 1e-4)
    if rings:
        distance = np.maximum(distance, 0.12 - np.abs(np.sin(rings * np.pi * radius / np.maximum(edge, 0.1))) * 0.5)
    return distance, height


def contour_class(label, rng):
    """Draw contour ``label``, on a ground that may hold others."""
    ground = random_texture(rng)
    if rng.random() < 0.3:
        ground = add_clutter(ground, rng)
    distance, height = contour_distance(label, rng)
    return place(ground, random_texture(rng), distance, height, rng)
