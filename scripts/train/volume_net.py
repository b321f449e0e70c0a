"""Networks for volumes (appendix A.3): a transformer in three dimensions, flattened along the depth for a CNN.

timm's models take images, so these are no timm models.
"""
import timm
from torch import Tensor, nn

from timm_stn import SpatialTransformer

SIDE = 32  # of what the transformer gives
VOLUME_NETS = {'volume_cnn': False, 'stn_volume_cnn': True}


class VolumeNet(nn.Module):
    """Logits (N, classes) of volumes (N, 1, S, S, S): `mnist_cnn` on their mean along the depth.

    Args:
        with_transformer: Warp the volume to 32 voxels a side first, by an `affine3d` transformer.
        img_size: Side S.
        num_classes: Number of classes.
        channels: Filters of the two convolutions of `mnist_cnn`.
        **stn: Other arguments of the transformer.

    Raises:
        ValueError: There are such arguments, but no transformer.
    """

    def __init__(self, with_transformer: bool, img_size: int, num_classes: int = 10,
                 channels: tuple[int, int] = (48, 112), **stn: object) -> None:
        super().__init__()
        if stn and not with_transformer:
            raise ValueError(f'volume_cnn has no transformer, which takes {", ".join(stn)}: stn_volume_cnn has one.')
        self.stn = SpatialTransformer(
            1, img_size, 'affine3d', size=SIDE, lr_scale=10.0, **stn) if with_transformer else nn.Identity()
        size = SIDE if with_transformer else img_size
        self.backbone = timm.create_model('mnist_cnn', img_size=size, num_classes=num_classes, channels=channels)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.backbone(self.stn(volumes).mean(2))
