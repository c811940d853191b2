"""Augmentations of face crops: every frame of a clip is changed alike.

Lengths in pixels are those of a crop of 224 pixels, and scale with its side.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

_NOMINAL_SIDE = 224

Parameters = Mapping[str, float]


def change(name: str, frames: np.ndarray, parameters: Parameters) -> np.ndarray:
    """uint8 [frames, 3, side, side], RGB, like `frames`, changed as the augmentation `name` says.

    parameters: what `Augmentation.draw` drew.
    """
    changed = CHANGES[name](torch.from_numpy(np.ascontiguousarray(frames)), parameters)
    return np.ascontiguousarray(changed.numpy())


def _jpeg(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.jpeg(frames, round(parameters["quality"]))


def _blur(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return blurred(frames, _scaled(parameters["sigma"], frames))


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    """uint8 [..., height, width]: Gaussian blur, sigma in pixels."""
    # The picture goes on as its mirror, which must be as large as the kernel's reach.
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in frames.shape[-2:]))
    return pictures.gaussian_blur(frames, [2 * reach + 1] * 2, [sigma, sigma])


def _motion_blur(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Means over points of a line through each pixel, about half a pixel apart; the picture goes on as its mirror."""
    length, angle = _scaled(parameters["length"], frames), math.radians(parameters["degrees"])
    reach = math.ceil(length / 2)
    kernel = torch.zeros(1, 1, 2 * reach + 1, 2 * reach + 1)
    for distance in np.linspace(-length / 2, length / 2, 4 * reach + 1):
        kernel[0, 0, reach + round(distance * math.sin(angle)), reach + round(distance * math.cos(angle))] += 1
    count, channels, height, width = frames.shape
    planes = frames.reshape(count * channels, 1, height, width).float()
    padded = torch.nn.functional.pad(planes, [reach] * 4, mode="reflect")
    return _levels(torch.nn.functional.conv2d(padded, kernel / kernel.sum())).reshape(frames.shape)


def _gaussian_noise(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    generator = np.random.default_rng(int(parameters["seed"]))
    noise = generator.normal(0.0, parameters["deviation"], frames.shape[1:]).astype(np.float32)
    return _levels(frames.float() + torch.from_numpy(noise))


def _half_resolution(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return coarsened(frames, 2.0)


def coarsened(frames: torch.Tensor, factor: float) -> torch.Tensor:
    """uint8 [..., height, width]: sides shrunk by `factor`, at least 1, and enlarged again."""
    sides = list(frames.shape[-2:])
    return pictures.resize(pictures.resize(frames, [max(1, int(side / factor)) for side in sides]), sides)


def _brightness(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.adjust_brightness(frames, parameters["factor"])


def _contrast(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Around the mean grey of all frames: with each one's own, equal pixels would become different ones."""
    mean = pictures.rgb_to_grayscale(frames).float().mean()
    return _levels((frames.float() - mean) * parameters["factor"] + mean)


def _gamma(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.adjust_gamma(frames, parameters["gamma"])


def _saturation(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.adjust_saturation(frames, parameters["factor"])


def _hue(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.adjust_hue(frames, parameters["turn"])


def _grey(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.rgb_to_grayscale(frames, num_output_channels=3)


def _flip(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return pictures.horizontal_flip(frames)


def _crop(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    side = frames.shape[-1]
    kept = max(1, round(parameters["share"] * side))
    left, top = (round(parameters[name] * (side - kept)) for name in ("left", "top"))
    return pictures.resized_crop(frames, top, left, kept, kept, [side, side])


def _rotation(frames: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """Of a picture that goes on beyond its border as its mirror image: no corner is black."""
    side = frames.shape[-1]
    # A turned square reaches (sqrt(2) - 1) / 2 of its side beyond its border at most, at 45 degrees.
    margin = min(side - 1, math.ceil(side * (math.sqrt(2) - 1) / 2) + 1)
    wider = pictures.pad(frames, [margin] * 4, padding_mode="reflect")
    turned = pictures.rotate(wider, parameters["degrees"], interpolation=InterpolationMode.BILINEAR)
    return pictures.center_crop(turned, [side, side])


def _scaled(pixels: float, frames: torch.Tensor) -> float:
    return pixels * frames.shape[-1] / _NOMINAL_SIDE


def _levels(values: torch.Tensor) -> torch.Tensor:
    """uint8: the nearest levels, from float values of any range."""
    return values.round().clamp(0, 255).to(torch.uint8)


CHANGES: dict[str, Callable[[torch.Tensor, Parameters], torch.Tensor]] = {
    "jpeg_40": _jpeg,
    "blur": _blur,
    "motion_blur": _motion_blur,
    "gaussian_noise": _gaussian_noise,
    "half_resolution": _half_resolution,
    "brighter": _brightness,
    "darker": _brightness,
    "contrast_up": _contrast,
    "contrast_down": _contrast,
    "gamma": _gamma,
    "saturation": _saturation,
    "hue": _hue,
    "grey": _grey,
    "flip": _flip,
    "crop": _crop,
    "rotation": _rotation,
}
"""Name of the augmentation -> its function of (frames uint8 [frames, 3, side, side], what was drawn)."""
