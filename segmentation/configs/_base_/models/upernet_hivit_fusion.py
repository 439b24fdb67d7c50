# UperNet on the fused maps of two modalities: one encoder, a patch embedding each.
_base_ = ["./upernet_hivit.py"]
model = dict(
    backbone=dict(modality="both", out_channels=None),
    neck=dict(
        type="PyramidFusion",
        in_channels=[512, 512, 512, 512],
        out_channels=256,
        drop_modality=0.0,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
    ),
)
