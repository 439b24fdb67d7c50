# Cascade R-CNN: three heads, each trained at a higher overlap than the one before it.
_base_ = ["mmdet::_base_/models/cascade-rcnn_r50_fpn.py"]

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
