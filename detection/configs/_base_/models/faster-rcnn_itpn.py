# Faster R-CNN on the pyramid of iTPN: its maps at strides 4 to 32, a pooled fifth one, and no FPN.
_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="CoDeMAEBackbone",
        encoder="random:hivit_base",
        modality="optical",
        out_channels=256,
        stride64="average",
        drop_path=0.15,
    ),
    neck=None,
)
