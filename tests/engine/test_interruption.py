import os
import signal

import pytest

from codemae.engine.interruption import Interrupted, Interruption


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_flag_and_handlers_come_back(signum, code):
    before = signal.getsignal(signum)
    with Interruption() as interruption:
        assert interruption.signum == 0
        os.kill(os.getpid(), signum)
        assert interruption.signum == signum
    assert signal.getsignal(signum) is before
    assert Interrupted(signum).exit_code == code


def test_a_second_ctrl_c_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
